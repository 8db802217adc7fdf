"""Wrong answers to module 07: what training loops and checkpoints get wrong."""

from wrong_answers import Wrong

WRONG = [
    # the schedule
    Wrong(
        name="the first warm-up step has a rate of 0",
        part="test-cosine-schedule",
        old="return self.max_lr * (step + 1) / self.warmup_steps",
        new="return self.max_lr * step / self.warmup_steps",
    ),
    Wrong(
        name="the warm-up is left out",
        part="test-cosine-schedule",
        old="        if step < self.warmup_steps:\n            return self.max_lr * (step + 1) / self.warmup_steps\n",
        new="",
    ),
    Wrong(
        name="the cosine begins before the warm-up",
        part="test-cosine-schedule",
        old="done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)",
        new="done = step / self.total_steps",
    ),
    Wrong(
        name="the cosine rises again after the end",
        part="test-cosine-schedule",
        old="        if step >= self.total_steps:\n            return self.min_lr\n",
        new="        if self.total_steps == self.warmup_steps:\n            return self.min_lr\n",
    ),
    Wrong(
        name="a whole cosine instead of half of one",
        part="test-cosine-schedule",
        old="math.cos(math.pi * done)",
        new="math.cos(2 * math.pi * done)",
    ),
    Wrong(
        name="min_lr is added to the whole height",
        part="test-cosine-schedule",
        old="(self.max_lr - self.min_lr) * 0.5",
        new="self.max_lr * 0.5",
    ),
    Wrong(
        name="a negative step is accepted",
        part="test-cosine-schedule",
        old='        if step < 0:\n            raise ValueError(f"steps are counted from 0, got {step}")\n',
        new="",
    ),
    # the file
    Wrong(
        name="written straight into the old file",
        part="test-replace-file",
        old='        with open(beside, "wb") as file:\n',
        new='        with open(path, "wb") as file, open(beside, "wb"):\n',
    ),
    Wrong(
        name="half a file stays behind",
        part="test-replace-file",
        old="    finally:\n        beside.unlink(missing_ok=True)\n",
        new="    finally:\n        pass\n",
    ),
    Wrong(
        name="the failure takes the name all the same",
        part="test-replace-file",
        old="        os.replace(beside, path)\n    finally:\n        beside",
        new="    finally:\n        os.replace(beside, path)\n        beside",
    ),
    Wrong(
        name="the old file is removed first",
        part="test-replace-file",
        old='        with open(beside, "wb") as file:\n',
        new='        path.unlink(missing_ok=True)\n        with open(beside, "wb") as file:\n',
    ),
    Wrong(
        name="the error is swallowed",
        part="test-replace-file",
        old="    finally:\n        beside.unlink",
        new="    except Exception:\n        pass\n    finally:\n        beside.unlink",
    ),
    Wrong(
        name="the bytes are not on the disk before the name",
        part="test-replace-file",
        old="            os.fsync(file.fileno())\n",
        new="",
    ),
    # saving
    Wrong(
        name="objects are pickled without a word",
        part="test-save-arrays",
        old="        if array.dtype.hasobject:\n",
        new="        if False:\n",
    ),
    Wrong(
        name="names without a prefix collide",
        part="test-save-arrays",
        old='{f"array/{name}": np.asarray(array) for',
        new="{name: np.asarray(array) for",
    ),
    Wrong(
        name="saved in float32 whatever it was",
        part="test-save-arrays",
        old="np.asarray(array) for name",
        new="np.asarray(array, np.float32) for name",
    ),
    Wrong(
        name="no facts are null",
        part="test-save-arrays",
        old="json.dumps(facts or {}, sort_keys=True)",
        new="json.dumps(facts, sort_keys=True)",
    ),
    Wrong(
        name="facts are written by repr",
        part="test-save-arrays",
        old="np.array(json.dumps(facts or {}, sort_keys=True))",
        new="np.array(repr(facts or {}))",
    ),
    Wrong(
        name="saved without replace_file",
        part="test-save-arrays",
        old="    replace_file(path, lambda file: np.savez(file, **entries))\n",
        new='    with open(path, "wb") as file:\n        np.savez(file, **entries)\n',
    ),
    # loading
    Wrong(
        name="pickles are allowed",
        part="test-load-arrays",
        old="np.load(file, allow_pickle=False)",
        new="np.load(file, allow_pickle=True)",
    ),
    Wrong(
        name="only damaged zip files are caught",
        part="test-load-arrays",
        old="        except Exception as error:\n",
        new='        except __import__("zipfile").BadZipFile as error:\n',
    ),
    Wrong(
        name="a missing file becomes a ValueError",
        part="test-load-arrays",
        old='    with open(path, "rb") as file:\n        try:\n',
        new=(
            "    if not Path(path).exists():\n"
            '        raise ValueError(f"{path} is not there")\n'
            '    with open(path, "rb") as file:\n        try:\n'
        ),
    ),
    Wrong(
        name="the prefix stays on the names",
        part="test-load-arrays",
        old='    return {name.removeprefix("array/"): array',
        new="    return {name: array",
    ),
    Wrong(
        name="lstrip instead of removeprefix",
        part="test-load-arrays",
        old='name.removeprefix("array/"): array for',
        new='name.lstrip("array/"): array for',
    ),
    Wrong(
        name="foreign names are accepted",
        part="test-load-arrays",
        old='if not isinstance(facts, dict) or not all(name.startswith("array/") for name in entries):',
        new="if not isinstance(facts, dict):",
    ),
    Wrong(
        name="facts may be a list",
        part="test-load-arrays",
        old='if not isinstance(facts, dict) or not all(name.startswith("array/") for name in entries):',
        new='if not all(name.startswith("array/") for name in entries):',
    ),
    Wrong(
        name="the error does not say which file",
        part="test-load-arrays",
        old='ValueError(f"{path} is not a whole file of saved arrays: {error}")',
        new='ValueError("this is not a whole file of saved arrays")',
    ),
    # a step
    Wrong(
        name="gradients of the last batch are kept",
        part="test-step",
        old="        self.optimizer.zero_grad()\n",
        new="",
    ),
    Wrong(
        name="the model stays in evaluation",
        part="test-step",
        old="        self.model.train()\n        self.optimizer",
        new="        self.optimizer",
    ),
    Wrong(
        name="zero_grad after backward",
        part="test-step",
        old="        value = self.gradients(inputs, targets)\n",
        new="        value = self.gradients(inputs, targets)\n        self.optimizer.zero_grad()\n",
    ),
    Wrong(
        name="only nan is caught, infinity is not",
        part="test-step",
        old="if not math.isfinite(value):",
        new="if math.isnan(value):",
    ),
    Wrong(
        name="the loss is checked after the optimizer's step",
        part="test-step",
        old="        if not math.isfinite(value):\n",
        new="        self.optimizer.step()\n        if not math.isfinite(value):\n",
    ),
    Wrong(
        name="the error names the step before",
        part="test-step",
        old='raise ValueError(f"step {self.steps + 1}: the loss',
        new='raise ValueError(f"step {self.steps}: the loss',
    ),
    Wrong(
        name="gradients are not looked at without max_norm",
        part="test-step",
        old="            clip_grad_norm(self.optimizer.parameters, limit)\n",
        new="            self.max_norm and clip_grad_norm(self.optimizer.parameters, limit)\n",
    ),
    Wrong(
        name="gradients are never shortened",
        part="test-step",
        old="            clip_grad_norm(self.optimizer.parameters, limit)\n",
        new="            clip_grad_norm(self.optimizer.parameters, math.inf)\n",
    ),
    Wrong(
        name="each weight is shortened by itself",
        part="test-step",
        old="            clip_grad_norm(self.optimizer.parameters, limit)\n",
        new="            for p in self.optimizer.parameters:\n                clip_grad_norm([p], limit)\n",
    ),
    Wrong(
        name="the schedule is one step ahead",
        part="test-step",
        old="self.optimizer.lr = self.schedule(self.steps)",
        new="self.optimizer.lr = self.schedule(self.steps + 1)",
    ),
    Wrong(
        name="the rate is set after the step",
        part="test-step",
        old=(
            "        if self.schedule is not None:\n"
            "            self.optimizer.lr = self.schedule(self.steps)\n"
            "        self.optimizer.step()\n"
        ),
        new=(
            "        self.optimizer.step()\n"
            "        if self.schedule is not None:\n"
            "            self.optimizer.lr = self.schedule(self.steps)\n"
        ),
    ),
    Wrong(
        name="the loss comes back as a Tensor with its whole history",
        part="test-step",
        old="        return value\n",
        new="        return self.loss(self.model(inputs), targets)\n",
    ),
    Wrong(
        name="the whole batch at once, whatever accumulate says",
        part="test-step",
        old="        value = self.gradients(inputs, targets)\n",
        new="        loss = self.loss(self.model(inputs), targets)\n"
        "        value = loss.item()\n"
        "        if math.isfinite(value):\n"
        "            loss.backward()\n",
    ),
    # fit
    Wrong(
        name="one epoch only",
        part="test-fit",
        old="                while self.steps < num_steps:\n",
        new="                for _ in range(self.steps < num_steps):\n",
    ),
    Wrong(
        name="the last epoch is always finished",
        part="test-fit",
        old="                        if self.steps >= num_steps:\n                            break\n",
        new="",
    ),
    Wrong(
        name="steps before this call do not count",
        part="test-fit",
        old="                while self.steps < num_steps:\n",
        new="                num_steps += self.steps\n                while self.steps < num_steps:\n",
    ),
    Wrong(
        name="an empty loader is asked for ever",
        part="test-fit",
        old='                        raise ValueError(f"the loader gave 0 batches after step {self.steps}")\n',
        new="                        continue\n",
    ),
    Wrong(
        name="on_step hears the step from 0",
        part="test-fit",
        old="on_step(self.steps, loss)",
        new="on_step(self.steps - 1, loss)",
    ),
    Wrong(
        name="Ctrl-C is never asked about within an epoch",
        part="test-fit",
        old="                        check()\n",
        new="",
    ),
    Wrong(
        name="the whole epoch is made a list first",
        part="test-fit",
        old="for inputs, targets in loader:",
        new="for inputs, targets in list(loader):",
    ),
    # evaluate
    Wrong(
        name="the mean of the batches' means",
        part="test-evaluate",
        old="total += number * self.loss(self.model(inputs), targets).item()\n                        count += number",
        new="total += self.loss(self.model(inputs), targets).item()\n                        count += 1",
    ),
    Wrong(
        name="weighed by samples instead of targets that count",
        part="test-evaluate",
        old="                        total += number",
        new="                        number = len(targets)\n                        total += number",
    ),
    Wrong(
        name="evaluated in training mode",
        part="test-evaluate",
        old="        self.model.eval()\n        total",
        new="        total",
    ),
    Wrong(
        name="evaluation is recorded for gradients",
        part="test-evaluate",
        old="            with no_grad():\n",
        new="            if True:\n",
    ),
    Wrong(
        name="always in training afterwards",
        part="test-evaluate",
        old="self.model.train(was_training)",
        new="self.model.train()",
    ),
    Wrong(
        name="left in evaluation",
        part="test-evaluate",
        old="self.model.train(was_training)",
        new="self.model.eval()",
    ),
    Wrong(
        name="no batch divides by zero",
        part="test-evaluate",
        old='        if count == 0:\n            raise ValueError("there are 0 targets to evaluate on")\n',
        new="",
    ),
    Wrong(
        name="a batch without a target is asked about",
        part="test-evaluate",
        old="                    if number:\n",
        new="                    if True:\n",
    ),
    # all or nothing
    Wrong(
        name="what was loaded stays when a later part refuses",
        part="test-load-together",
        old="            part.load_state_dict(before)\n        raise",
        new="            pass\n        raise",
    ),
    Wrong(
        name="the live arrays are kept instead of copies",
        part="test-load-together",
        old="before = copy.deepcopy(part.state_dict())",
        new="before = part.state_dict()",
    ),
    Wrong(
        name="the refusal is swallowed",
        part="test-load-together",
        old="            part.load_state_dict(before)\n        raise\n",
        new="            part.load_state_dict(before)\n",
    ),
    Wrong(
        name="put back in the same order",
        part="test-load-together",
        old="reversed(loaded)",
        new="loaded",
    ),
    Wrong(
        name="Ctrl-C leaves half of it",
        part="test-load-together",
        old="    except BaseException:\n",
        new="    except Exception:\n",
    ),
    Wrong(
        name="loaded in the opposite order",
        part="test-load-together",
        old="        for part, state in pairs:\n",
        new="        for part, state in list(pairs)[::-1]:\n",
    ),
]
