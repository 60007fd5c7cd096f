"""Reads a Dockerfile: stages and their instructions, as far as ours needs it."""


class Dockerfile:
    """A Dockerfile.

    Attributes:
        stages: A list of (name or None, [(instruction, its text), ...]).
        arguments: ARG before them, name -> default.
    """

    def __init__(self, path):
        self.stages, self.arguments = [], {}
        for line in _joined(path.read_text()):
            instruction, _, text = line.partition(" ")
            if instruction == "FROM":
                base, _, name = text.partition(" AS ")
                for argument, value in self.arguments.items():
                    base = base.replace(f"${{{argument}}}", value)
                self.stages.append((name or None, [("FROM", base)]))
            elif self.stages:
                self.stages[-1][1].append((instruction, text))
            else:
                assert instruction == "ARG", line
                name, _, value = text.partition("=")
                self.arguments[name] = value

    def of_last_stage(self, instruction):
        """Returns the texts of an instruction in the stage that becomes the image."""
        return [text for name, text in self.stages[-1][1] if name == instruction]


def _joined(text):
    """Yields instructions, each in one line, without comments."""
    line = ""
    for part in text.splitlines():
        if part.lstrip().startswith("#") or not (line or part.strip()):
            continue
        line += part.strip().removesuffix("\\")
        if not part.endswith("\\"):
            yield line
            line = ""
