"""A GGUF file with its weights dequantised, for contenders that compute with what is in the file."""

from pathlib import Path

import gguf

from tinytorch.pretrained.gguf_file import GGUFFile


def write_float32(source: Path, target: Path) -> None:
    """The same model and tokenizer as in `source`, all weights in float32."""
    reader, weights = gguf.GGUFReader(source), GGUFFile(source)
    writer = gguf.GGUFWriter(target, weights.metadata["general.architecture"])
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, *items = field.types
        writer.add_key_value(name, field.contents(), kind, sub_type=items[-1] if items else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name in weights.shapes:
        writer.add_tensor(name, weights.tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
