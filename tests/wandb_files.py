"""What an offline W&B run has written."""

import json
import struct
import time

from wandb.proto.wandb_internal_pb2 import Record


def transactions(folder):
    """The records of a finished run's log; W&B's service makes the file and writes the last of them when it likes."""
    end = time.monotonic() + 20
    while not (records := list(_records(folder))) or not records[-1].HasField("exit"):
        assert time.monotonic() < end, "the run has not been finished"
        time.sleep(0.02)
    return records


def _records(folder):
    """A LevelDB log of protocol buffers."""
    data, position, message = b"".join(file.read_bytes() for file in folder.glob("*.wandb")), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + size > len(data):
            return
        message += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole message, or the last part of one
            yield Record.FromString(message)
            message = b""


def history(folder):
    """The values that were logged, step by step."""
    return [_values(record.history.item) for record in transactions(folder) if record.HasField("history")]


def summary(folder):
    """The last value of everything."""
    updates = [_values(record.summary.update) for record in transactions(folder) if record.HasField("summary")]
    return {name: value for update in updates for name, value in update.items()}


def config(folder):
    """The configuration of the run, nested."""
    found = {}
    for record in transactions(folder):
        for message in (record.config, record.run.config):
            found |= {name: value for name, value in _values(message.update).items() if "_wandb" not in name}
    return found


def artifacts(folder):
    """The artifacts by name: type, metadata, and the files by their path in the artifact."""
    found = {}
    for record in transactions(folder):
        if record.HasField("artifact"):
            artifact = record.artifact
            files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
            found[artifact.name] = (artifact.type, json.loads(artifact.metadata or "{}"), files)
    return found


def table(folder, name):
    """The rows of a table as dictionaries, as its artifact holds them."""
    run = folder.name.split("-")[3]  # a second folder of the same second has one part more
    _, _, files = artifacts(folder)[f"run-{run}-{name}"]
    with open(files[f"{name}.table.json"]) as file:
        content = json.load(file)
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def _values(items):
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
