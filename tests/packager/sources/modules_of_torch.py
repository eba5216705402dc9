"""Code that a user of PyTorch might name, and some that cannot be exported."""

CODE = """
import os
import pickle
import zipfile

import torch
from torch import nn


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(1, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.f = nn.Linear(144, 10)

    def forward(self, image, scale, mask=None):
        y = self.f(self.drop(torch.relu(self.c(image)).flatten(1))) * scale
        return {"scores": y, "pair": (y.softmax(1), y.argmax(1)), "nothing": None}


def cnn():
    torch.manual_seed(0)
    return Cnn(), (torch.randn(1, 1, 8, 8), torch.randn(1, 10))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.f = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, tokens):
        return self.f(self.e(tokens).mean(1))


def named():
    torch.manual_seed(0)
    return Bag(), {"tokens": torch.arange(6)[None]}, {"tokens": {1: "length"}}


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(1, 12) * 2


def fixed():
    return Fixed(), torch.ones(1, 3, 4)


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def unknown():
    return Unknown(), torch.ones(2, 3)


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return x + 1


def branches():
    return Branches(), torch.ones(2, 3)


class Closed(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 21) * 2


def closed():
    return Closed(), torch.ones(2, 7, 3), {"x": {1: "steps"}}


class ObjectOut(nn.Module):
    def forward(self, x):
        return (x, "text")[1:]


def object_out():
    return ObjectOut(), torch.ones(2, 3)


    return nn.Sequential(nn.Linear(3, 2)), (torch.ones(1, 3), torch.ones(1, 3))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(3, 2)

    def forward(self, x):
        return self.f(x)


def too_many():
    return Plain(), (torch.ones(1, 3), torch.ones(1, 3))


def no_tensor():
    return Plain(), [[1.0, 2.0, 3.0]]


def wrong_size():
    return Plain(), torch.ones(1, 4)


def wrong_axis():
    return Plain(), torch.ones(1, 3), {"x": {5: "length"}}


def weights():
    return Plain().state_dict()


def save():
    torch.manual_seed(0)
    net = Plain().eval()
    shapes = {"x": {0: torch.export.Dim("rows")}}
    program = torch.export.export(net, (torch.ones(2, 3),), dynamic_shapes=shapes)
    torch.export.save(program, "net.pt2")
    torch.save(net, "net.pth")
    save_hostile()


class Evil:
    def __reduce__(self):
        return (open, (os.path.abspath("mark"), "w"))


def save_hostile():
    with zipfile.ZipFile("net.pt2") as old, zipfile.ZipFile("hostile.pt2", "w") as new:
        for name in old.namelist():
            raw = old.read(name)
            if name.endswith("sample_inputs/model.pt"):
                torch.save(Evil(), "evil.pt")
                raw = open("evil.pt", "rb").read()
            new.writestr(name, raw)
"""
