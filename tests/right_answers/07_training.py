"""Right answers to module 07."""

from right_answers import Right

RIGHT = [
    Right(
        name="np.interp, flags and early returns",
        bodies={
            "CosineSchedule.__call__": """
                if step < 0:
                    raise ValueError(f"there is no step {step}, they start at 0")
                if step < self.warmup_steps:
                    return (step + 1) / self.warmup_steps * self.max_lr
                length = max(self.total_steps - self.warmup_steps, 1)
                done = min((step - self.warmup_steps) / length, 1.0)
                if step >= self.total_steps:
                    done = 1.0
                share = (math.cos(done * math.pi) + 1) / 2
                return share * self.max_lr + (1 - share) * self.min_lr
            """,
            "replace_file": """
                try:
                    with beside.open("wb") as file:
                        write(file)
                        file.flush()
                        os.fsync(file.fileno())
                    beside.replace(path)
                except BaseException:
                    if beside.exists():
                        beside.unlink()
                    raise
            """,
            "save_arrays": """
                def put(file):
                    np.savez(file, facts=np.array(text), **{"array/" + n: a for n, a in own.items()})

                own = {name: np.asarray(arrays[name]) for name in arrays}
                for name in own:
                    if own[name].dtype.kind == "O" or own[name].dtype.hasobject:
                        raise TypeError(f"{name} holds objects ({own[name].dtype}), no numbers")
                text = json.dumps({} if facts is None else facts)
                replace_file(path, put)
            """,
            "Trainer.step": """
                model, optimizer = self.model, self.optimizer
                model.train(True)
                optimizer.zero_grad()
                loss = self.gradients(inputs, targets)
                number = self.steps + 1
                if not np.isfinite(loss):
                    raise ValueError(f"step {number}: loss {loss} is not finite")
                try:
                    clip_grad_norm(optimizer.parameters, self.max_norm or float("inf"))
                except ValueError as problem:
                    raise ValueError(f"step {number}: {problem}") from problem
                if self.schedule:
                    optimizer.lr = self.schedule(self.steps)
                optimizer.step()
                self.steps = number
                return float(loss)
            """,
            "Trainer.fit": """
                while self.steps < num_steps:
                    found = False
                    for batch in loader:
                        found = True
                        x, y = batch
                        loss = self.step(x, y)
                        if on_step:
                            on_step(self.steps, loss)
                        check()
                        if self.steps == num_steps:
                            return
                    if not found:
                        raise ValueError("the loader has 0 batches")
            """,
            "Trainer.evaluate": """
                mode, losses, weights = self.model.training, [], []
                try:
                    self.model.eval()
                    with no_grad():
                        for x, y in batches:
                            n = counted(self.loss, y)
                            if n == 0:
                                continue
                            losses.append(self.loss(self.model(x), y).item())
                            weights.append(n)
                finally:
                    self.model.train(mode)
                if not losses:
                    raise ValueError("evaluate saw 0 targets")
                return float(np.average(losses, weights=weights))
            """,
            "load_together": """
                from contextlib import ExitStack

                with ExitStack() as undo:
                    for part, state in pairs:
                        old = copy.deepcopy(part.state_dict())
                        part.load_state_dict(state)
                        undo.callback(part.load_state_dict, old)
                    undo.pop_all()
            """,
        },
    ),
    Right(
        name="a beginner, long hand",
        bodies={
            "CosineSchedule.__call__": """
                import sys  # noqa: F401

                schritt = step
                if schritt < 0:
                    raise ValueError("Schritt " + str(schritt) + " ist kleiner als 0")
                if schritt >= self.total_steps and schritt >= self.warmup_steps:
                    return self.min_lr
                if schritt < self.warmup_steps:
                    lr = self.max_lr * ((schritt + 1) / self.warmup_steps)
                    return lr
                fortschritt = (schritt - self.warmup_steps) / (self.total_steps - self.warmup_steps)
                kosinus = np.cos(np.pi * fortschritt)
                lr = self.min_lr + 0.5 * (self.max_lr - self.min_lr) * (1 + kosinus)
                return float(lr)
            """,
            "load_arrays": """
                arrays = {}
                facts = None
                file = open(path, "rb")
                try:
                    npz = np.load(file, allow_pickle=False)
                    for name in npz.files:
                        if name == "facts":
                            facts = json.loads(str(npz[name]))
                        elif name.startswith("array/"):
                            arrays[name[len("array/") :]] = npz[name]
                        else:
                            raise ValueError("unknown entry " + name)
                    if type(facts) is not dict:
                        raise ValueError("no facts")
                except Exception as fehler:
                    raise ValueError(f"{path} cannot be read: {fehler}") from fehler
                finally:
                    file.close()
                return arrays, facts
            """,
            "Trainer.step": """
                self.model.train()
                self.optimizer.zero_grad()
                wert = self.gradients(inputs, targets)
                print("loss", wert)
                if math.isnan(wert) or math.isinf(wert):
                    raise ValueError("step " + str(self.steps + 1) + ": loss ist " + str(wert))
                grenze = self.max_norm
                if grenze is None:
                    grenze = math.inf
                try:
                    clip_grad_norm(self.optimizer.parameters, grenze)
                except ValueError as fehler:
                    raise ValueError("step " + str(self.steps + 1) + ": " + str(fehler))
                if self.schedule is not None:
                    neue_rate = self.schedule(self.steps)
                    self.optimizer.lr = neue_rate
                self.optimizer.step()
                self.steps = self.steps + 1
                return wert
            """,
            "Trainer.evaluate": """
                vorher = self.model.training
                summe = 0.0
                anzahl = 0
                self.model.eval()
                try:
                    for inputs, targets in batches:
                        n = counted(self.loss, targets)
                        if n > 0:
                            with no_grad():
                                verlust = self.loss(self.model(inputs), targets)
                            summe += float(verlust.item()) * n
                            anzahl += n
                finally:
                    if vorher:
                        self.model.train()
                    else:
                        self.model.eval()
                if anzahl < 1:
                    raise ValueError("0 Ziele")
                mittel = summe / anzahl
                return mittel
            """,
        },
    ),
]
