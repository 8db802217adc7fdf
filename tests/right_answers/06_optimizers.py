"""Right answers to module 06."""

from right_answers import Right

RIGHT = [
    Right(
        name="as the formulas stand in the paper",
        bodies={
            "sgd_step": "weight[...] = weight - lr * grad",
            "accumulate": "velocity[...] = momentum * velocity + grad",
            "update_moments": """
                m[...] = beta1 * m + (1 - beta1) * grad
                v[...] = beta2 * v + (1 - beta2) * grad**2
            """,
            "adam_step": """
                m_hat = m / (1 - beta1**t)
                v_hat = v / (1 - beta2**t)
                weight -= lr * m_hat / (np.sqrt(v_hat) + eps)
            """,
            "Optimizer.step": """
                for i in self.with_gradient():
                    self.steps[i] = self.steps[i] + 1
                    buffers = [self.buffers[name][i] for name in self.buffer_names]
                    for block in in_blocks(self.parameters[i].data, self.parameters[i].grad, *buffers):
                        self.update(*block, t=self.steps[i])
            """,
            "Optimizer.state_dict": """
                numbers = {name: getattr(self, name) for name in self.settings}
                arrays = {
                    f"{name}.{i}": array for name in self.buffer_names for i, array in enumerate(self.buffers[name])
                }
                return {**numbers, "steps": np.asarray(self.steps), **arrays}
            """,
            "SGD.update": """
                direction = grad + self.weight_decay * weight
                for velocity in buffers:
                    accumulate(velocity, direction, self.momentum)
                    direction = velocity
                sgd_step(weight, direction, self.lr)
            """,
            "Adam.update": """
                beta1, beta2 = self.betas
                update_moments(m, v, grad + self.weight_decay * weight, beta1, beta2)
                adam_step(weight, m, v, t, self.lr, beta1, beta2, self.eps)
            """,
            "AdamW.update": """
                decay = self.lr * self.weight_decay
                sgd_step(weight, weight.copy(), decay)
                update_moments(m, v, grad, *self.betas)
                adam_step(weight, m, v, t, self.lr, *self.betas, self.eps)
            """,
            "clip_grad_norm": """
                parameters = list(parameters)
                if math.isnan(max_norm) or max_norm <= 0:
                    raise ValueError(f"max_norm {max_norm} is not above 0")
                with_grad = [p for p in parameters if p.grad is not None]
                norm = math.sqrt(math.fsum(squared_norm(p.grad) for p in with_grad))
                if math.isnan(norm) or math.isinf(norm):
                    for number, p in enumerate(parameters):
                        if p.grad is not None and not np.all(np.isfinite(p.grad)):
                            raise ValueError(f"the norm is {norm}, see parameter {number}")
                    raise ValueError(f"the norm is {norm}")
                scale = min(1.0, max_norm / norm) if norm else 1.0
                if scale < 1:
                    for p in with_grad:
                        np.multiply(p.grad, scale, out=p.grad)
                return norm
            """,
        },
    ),
    Right(
        name="out= everywhere, a beginner's loops",
        bodies={
            "sgd_step": "np.subtract(weight, lr * grad, out=weight)",
            "accumulate": """
                np.multiply(velocity, momentum, out=velocity)
                np.add(velocity, grad, out=velocity)
            """,
            "update_moments": """
                m += (1 - beta1) * (grad - m)
                v += (1 - beta2) * (np.square(grad) - v)
            """,
            "adam_step": """
                korrektur1 = 1 - math.pow(beta1, t)
                korrektur2 = 1 - math.pow(beta2, t)
                wurzel = np.sqrt(v / korrektur2)
                wurzel = wurzel + eps
                schritt = m / korrektur1
                schritt = schritt / wurzel
                schritt *= lr
                np.subtract(weight, schritt, out=weight)
            """,
            "Optimizer.step": """
                nummern = self.with_gradient()
                print("Parameter mit Gradient:", nummern)
                for i in range(len(self.parameters)):
                    if i not in nummern:
                        continue
                    self.steps[i] += 1
                    p = self.parameters[i]
                    args = [p.data, p.grad]
                    for name in self.buffers:
                        args.append(self.buffers[name][i])
                    for stueck in in_blocks(*args):
                        self.update(*stueck, t=self.steps[i])
            """,
            "Optimizer.state_dict": """
                ergebnis = {}
                for name in self.settings:
                    ergebnis[name] = getattr(self, name)
                for name in self.buffers:
                    for i in range(len(self.buffers[name])):
                        ergebnis[name + "." + str(i)] = self.buffers[name][i]
                ergebnis["steps"] = np.array(self.steps)
                return ergebnis
            """,
            "SGD.update": """
                g = grad.copy()
                if self.weight_decay > 0:
                    g += self.weight_decay * weight
                if len(buffers) == 1:
                    accumulate(buffers[0], g, self.momentum)
                    sgd_step(weight, buffers[0], self.lr)
                else:
                    sgd_step(weight, g, self.lr)
            """,
            "AdamW.update": """
                weight -= self.lr * self.weight_decay * weight
                update_moments(m, v, grad, self.beta1, self.beta2)
                adam_step(weight, m, v, t, self.lr, self.beta1, self.beta2, self.eps)
            """,
        },
    ),
]
