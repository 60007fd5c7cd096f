"""Plays a transcript: cores of several replicas, one store, and a driver that does one thing at a time.

A line is a command; the lines after it, which begin with `->`, are the effects that came out, in order.
Commands, where A is a replica and s a session:

    open s t                   sessions as OpenSession leaves them
    A submit s@3 [1 2] ...     a chunk; without @3 it appends. Options: ack=2, level=replicated, gone
    A next                     takes a batch
    A load | run | commit | confirm | quarantine
                               performs the oldest effect of that kind and reports it. A load or a confirm
                               `fails`; the connection to the store is made anew while a load or a commit is
                               under way, which `reconnects`; the reply to a commit is `lost`, and the
                               records may be `lost unwritten`
    A reconnect                the store's connection of this replica is made anew
    A forget s | A drain | A stop
    A due                      lets go on what had to wait
    wait 5                     seconds pass; each command takes a thousandth
    keep | restore             the store is copied; it goes back to the copy

The model sums up its tokens. It raises on token 254, and does not end on 253.
"""

import re

import numpy as np

from holdfast.errors import AckLevelNotReached, ModelFailed, ServiceError, StoreUnavailable
from service.engine.asked import Asked
from service.engine.core import Core
from service.engine.effects import Commit, Confirm, Failure, Kind, Load, Quarantine, Run, Settle
from service.engine.limits import EngineLimits
from service.engine.records import make_records
from service.engine.rows import Chunk
from service.engine.rules import quarantined
from service.engine.run import run_batch
from service.store.protocol import AckLevel, Found
from service.store.record import NO_STAMP, STAMP_END, STAMP_START, decode, encode, new_record
from tests.support.fakes import AccumulatorModel, FakeModels, encode_totals

RAISES, STALLS = 254, 253
EFFECTS = {"load": Load, "run": Run, "commit": Commit, "confirm": Confirm, "quarantine": Quarantine}


class Replica:
    """A core, and its effects that are not performed yet."""

    def __init__(self, model):
        self.core = Core(FakeModels(model), EngineLimits(), epoch=1)
        self.pending = []
        self.epoch = 1


class World:
    """What a transcript is played in."""

    def __init__(self):
        self.model = AccumulatorModel()
        self.records, self.kept, self.now_s = {}, {}, 0.0
        self.replicas = {}

    def play(self, text):
        """Returns the transcript with the effects as they came out."""
        lines = []
        for line in text.splitlines():
            if line.startswith("->"):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                lines += [f"-> {said}" for said in self.command(line.split("#")[0].split())]
        return "\n".join(lines) + "\n"

    def command(self, words):
        self.now_s += 0.001
        match words:
            case ["open", *names]:
                for name in names:
                    record = new_record(self.model.fingerprint, bytes(self.model.contract.state_bytes))
                    self.records[name.encode()] = encode(record)
                return []
            case ["wait", seconds]:
                self.now_s += float(seconds)
                return []
            case ["keep"]:
                self.kept = dict(self.records)
                return []
            case ["restore"]:
                self.records = dict(self.kept)
                return []
        name, verb, *rest = words
        replica = self.replicas.setdefault(name, Replica(self.model))
        return self.act(replica, verb, rest)

    def act(self, replica, verb, rest):
        core = replica.core
        match verb:
            case "submit":
                return self.submit(core, rest)
            case "reconnect":
                replica.epoch += 1
                return []
            case "forget":
                core.forget(rest[0].encode())
                return []
            case "drain":
                core.drain()
                return []
            case "next":
                effects = core.next(self.now_s, replica.epoch)
            case "due":
                effects = core.due(self.now_s)
            case "stop":
                effects = core.stop(self.now_s) + core.refuse_waiting(self.now_s)
            case _:
                effect = next(one for one in replica.pending if isinstance(one, EFFECTS[verb]))
                replica.pending.remove(effect)
                effects = getattr(self, verb)(replica, effect, rest)
        replica.pending += [effect for effect in effects if not isinstance(effect, Settle)]
        return [described(effect) for effect in effects]

    def submit(self, core, words):
        session, _, position = words[0].partition("@")
        tokens = re.search(r"\[(.*?)\]", " ".join(words))[1].split()
        options = dict(word.split("=") for word in words if "=" in word)
        raw = np.array(tokens, np.int64).tobytes()
        level = AckLevel.parse(options["level"]) if "level" in options else None
        asked = Asked("ids", len(tokens), model_name="sum", ack_level=level)
        acknowledged = int(options["ack"]) if "ack" in options else None
        chunk = Chunk(session.encode(), asked, raw, None, int(position) if position else None, acknowledged)
        chunk.is_cancelled = "gone" in words
        try:
            core.submit(chunk, self.now_s)
        except ServiceError as error:
            return [f"refused {error.reason}"]
        return []

    def load(self, replica, load, rest):
        load.began_s, load.epoch = self.now_s, replica.epoch
        self.now_s += 0.001
        if rest == ["fails"]:
            return replica.core.unread(load, StoreUnavailable("down", retry_after_s=0.1), self.now_s)
        records = [self.records.get(key) for key in load.keys]
        if rest == ["reconnects"]:
            replica.epoch += 1
        return replica.core.loaded(load, records, replica.epoch, self.now_s)

    def run(self, replica, run, _):
        failures = [self.run_group(group) for group in run.groups]
        return replica.core.ran(run, failures, self.now_s)

    def run_group(self, group):
        tokens = np.concatenate([rows.tokens.ravel() for rows in group])
        if (tokens == STALLS).any():
            return Failure(ModelFailed("did not end"), was_halted=True, cpu_s=0.0, on_loop=True)
        if (tokens == RAISES).any():
            return Failure(ModelFailed("token 254"), was_halted=False, cpu_s=0.001)
        run_batch(self.model, group, encode_totals, self.model.new_halt())
        return None

    def commit(self, replica, commit, rest):
        for rows in commit.rows:
            make_records(rows)
        commit.began_s, commit.epoch = self.now_s, replica.epoch
        self.now_s += 0.001
        refusals = {} if "unwritten" in rest else self.write(commit)
        if "lost" in rest:
            return replica.core.lost(commit, StoreUnavailable("lost", retry_after_s=0.1), self.now_s)
        if "reconnects" in rest:
            replica.epoch += 1
        return replica.core.committed(commit, refusals, replica.epoch, self.now_s)

    def write(self, commit):
        refusals, number = {}, 0
        for rows in commit.rows:
            for place, (key, record) in enumerate(zip(rows.keys, rows.writes.records, strict=True)):
                found = self.records.get(key)
                stamp = NO_STAMP if found is None else found[STAMP_START:STAMP_END]
                if stamp == rows.writes.expected[place * len(stamp) : (place + 1) * len(stamp)]:
                    self.records[key] = bytes(record)
                else:
                    refusals[number] = Found(found)
                number += 1
        return refusals

    def confirm(self, replica, confirm, rest):
        refusals = {}
        if rest == ["fails"] or confirm.epoch != replica.epoch:
            late = AckLevelNotReached("not yet", retry_after_s=0.1)
            refusals = dict.fromkeys(range(len(confirm.rows)), late)
        return replica.core.confirmed(confirm, refusals, self.now_s)

    def quarantine(self, replica, effect, _):
        [key] = effect.rows.keys
        record = decode(self.records[key])
        refusal = None
        if record.stamp == effect.rows.stamps.tobytes():
            held = record._replace(quarantine_reason=effect.error.message)
            self.records[key], refusal = encode(held), quarantined(held)
        return replica.core.quarantined(effect, refusal, self.now_s)


def described(effect):
    """Returns an effect as a transcript has it."""
    match effect:
        case Load():
            about = "read back" if effect.commit is not None else "load"
            return " ".join([about, *map(bytes.decode, effect.keys)])
        case Run():
            kind = "" if effect.kind is Kind.BATCH else f" {effect.kind.name.lower()}"
            groups = [
                "+".join(key.decode() for rows in group for key in rows.keys) for group in effect.groups
            ]
            return " ".join([f"run{kind}", *groups])
        case Commit():
            stamps = []
            for rows in effect.rows:
                ends = zip(rows.keys, rows.stamps[:, 1], rows.next_stamps[:, 1], strict=True)
                stamps += [f"{key.decode()}@{before}>{after}" for key, before, after in ends]
            return " ".join(["commit", *stamps])
        case Settle(error=None):
            rows = effect.rows
            totals = [row.view(np.float32).astype(int).tolist() for row in rows.outputs]
            ends = zip(rows.keys, rows.next_stamps[:, 1], totals, strict=True)
            said = ", ".join(f"{key.decode()}@{end} {total}" for key, end, total in ends)
            return f"settle{' again' if rows.is_replayed else ''} {said}"
        case Settle():
            return " ".join(["settle", *map(bytes.decode, effect.rows.keys), effect.error.reason])
    name = type(effect).__name__.lower()
    return " ".join([name, *map(bytes.decode, effect.rows.keys)])
