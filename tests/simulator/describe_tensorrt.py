"""Print what the installed ``tensorrt_rtx`` has, as JSON: members of enumerations, attributes of
classes with the first lines of their documentation, which are signatures."""

from __future__ import annotations

import json

import tensorrt_rtx

found = {}
for name, value in vars(tensorrt_rtx).items():
    if isinstance(value, type):
        members = getattr(value, "__members__", {})
        found[name] = {
            "members": {member: int(number) for member, number in members.items()},
            "attributes": {each: getattr(value, each).__doc__ or "" for each in dir(value)},
        }
print(json.dumps({"version": tensorrt_rtx.__version__, "classes": found}))  # noqa: T201
