"""Reader of the `.wandb` files that offline runs leave behind."""

import json
import struct

from wandb.proto import wandb_internal_pb2


def records(content, block=32768):
    """Parses a `.wandb` file: LevelDB's log format behind 7 bytes (wandb 0.31 ships no reader in Python any more)."""
    assert content[:4] == b":W&B"
    at, data = 7, b""
    while at + 7 <= len(content):
        if (room := block - at % block) < 7:  # a block's end that holds no header
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind == 0:  # zeros to the block's end
            at += room
            continue
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield data
            data = b""


def logged(folder):
    """The history of a run's `.wandb` file (a `dict` per log, keys to values), and its artifacts."""

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    history, artifacts = [], []
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "artifact":
            artifacts.append(record.artifact)
        if record.WhichOneof("record_type") == "history":
            history.append({})
            for item in record.history.item:  # a table comes as one item per property of it
                *outer, key = item.nested_key or [item.key]
                (history[-1].setdefault(outer[0], {}) if outer else history[-1])[key] = json.loads(item.value_json)
    return history, artifacts
