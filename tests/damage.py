"""Files as disks, networks and editors damage them."""

import json


VALUES = [None, True, -1, 0, 1, 10**9, 10**400, 1e308, "", "x", "../../x", [], [[]], {}, {"a": 1}, "a\0b", "é" * 300]


def damage_bytes(content, rng):
    data = bytearray(content)
    kind = rng.choice(["cut", "flip", "insert", "zero", "head", "empty", "double"])
    if kind == "cut":
        return bytes(data[: rng.randrange(len(data) + 1)])
    if kind == "flip":
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "insert":
        place = rng.randrange(len(data))
        data[place:place] = rng.randbytes(rng.choice([1, 8, 100]))
    elif kind == "zero":
        place = rng.randrange(len(data))
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif kind == "head":  # of safetensors: lengths, names, dtypes and shapes
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
    elif kind == "empty":
        return b""
    else:
        return content + content
    return bytes(data)


def damage_json(content, rng):
    values = json.loads(content)
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([*values, "surprise"])
        if rng.random() < 0.2:
            values.pop(name, None)
        elif isinstance(values.get(name), dict) and values[name] and rng.random() < 0.6:
            values[name][rng.choice([*values[name]])] = rng.choice(VALUES)
        else:
            values[name] = rng.choice(VALUES)
    return json.dumps(values).encode()


def assert_one_line(error):
    text = str(error)
    assert "\n" not in text and len(text) < 1500, text
