"""Stand for classes of libraries that a client need not have: torch, pandas, cupy."""

import numpy as np


class FakeDevice:
    def __init__(self, kind):
        self.type = kind

    def __str__(self):
        return f"{self.type}:0"


class FakeTensor:
    """As torch's: no numbers come out while it has a gradient, or where it lies elsewhere."""

    def __init__(self, values, *, dtype="torch.float32", device="cpu", has_gradient=False):
        self.values = values
        self.dtype = dtype
        self.device = FakeDevice(device)
        self.has_gradient = has_gradient

    def detach(self):
        return FakeTensor(self.values, dtype=self.dtype, device=self.device.type)

    def float(self):
        return FakeTensor(np.asarray(self.values, np.float32))

    def numpy(self):
        is_odd = self.dtype in ("torch.bfloat16", "torch.sparse")
        if self.has_gradient or is_odd or self.device.type != "cpu":
            raise RuntimeError("can't")
        return np.asarray(self.values)

    def __array__(self, *_, **__):
        return self.numpy()

    def __len__(self):
        return len(self.values)


FakeTensor.__module__ = "torch"


class FakeTable:
    """As DataFrames: iterating gives the names of columns."""

    def __init__(self, columns):
        self.columns = columns
        self.shape = (len(next(iter(columns.values()))), len(columns))

    def __iter__(self):
        return iter(self.columns)

    def __len__(self):
        return self.shape[0]

    def to_numpy(self):
        return np.stack([np.asarray(column) for column in self.columns.values()], axis=1)


class FakeColumn:
    """As a Series with a null: numpy gets objects."""

    def __init__(self, values):
        self.values = values
        self.shape = (len(values),)

    def __iter__(self):
        return iter(self.values)

    def to_numpy(self):
        return np.array(self.values, object)


class OnlyElsewhere:
    """As an array of cupy."""

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion is not allowed, call .get()")
