"""Files that come, change and go in a folder that is served: real files, real checks, no server."""

import asyncio
import logging
import shutil
import threading

import pytest

from holdfast.errors import ModelNotFound
from service.model import reloading, repository
from service.model.files import ModelFileError, fingerprint_of
from service.model.loading import load_model
from service.model.reloading import MAX_TOLD, ModelReloading
from service.model.repository import ModelRepository
from tests.support.hostile_models import external_tensor, step_graph
from tests.support.mixing_graphs import beside, less_mean
from tests.support.models import CONTRACT, write_features_model
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("forked_checks")]

BROKEN = step_graph(initializers=[external_tensor("w.bin")]).SerializeToString()


class Counts:
    """Implements `ModelObserver`; `after_look` is called at the end of each look."""

    def __init__(self):
        self.loaded_count = self.refused_count = self.standing_count = 0
        self.after_look = lambda: None

    def loaded(self):
        self.loaded_count += 1

    def refused(self):
        self.refused_count += 1

    def stand_refused(self, count):
        self.standing_count = count
        self.after_look()


class Scene:
    """A folder with version 1 of the model `sum`, served."""

    def __init__(self, folder):
        self.folder = folder
        self.put(1)
        self.models = ModelRepository(folder)
        self.counts = Counts()

    def path(self, version, name="sum"):
        return self.folder / name / str(version) / "model.onnx"

    def put(self, version, name="sum", **facts):
        """Puts a model of its own, or exchanges it, by a rename."""
        path = self.path(version, name)
        fresh = path.with_suffix(".part")
        facts = {f"holdfast.{key}": value for key, value in facts.items()}
        write_features_model(fresh, metadata={**CONTRACT, "holdfast.for": f"{name} {version}", **facts})
        fresh.replace(path)

    def put_broken(self, version):
        self.path(version).parent.mkdir()
        self.path(version).write_bytes(BROKEN)

    def reloading(self, *, refresh_s=1000.0, is_alone=True, why_not=lambda _: None, **options):
        return ModelReloading(
            self.folder,
            self.models,
            max_bytes=1 << 20,
            why_not=why_not,
            observer=self.counts,
            refresh_s=refresh_s,
            is_alone=is_alone,
            **options,
        )

    @property
    def versions(self):
        return [(model.name, model.version) for model in self.models]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "models")


def texts(refused):
    return [str(error) for error in refused]


async def test_a_new_version_and_a_new_name_are_loaded_and_newest(scene):
    old = scene.models.find("sum")
    reloading = scene.reloading()
    scene.put(2)
    scene.put(5, name="other")
    assert await reloading.reload() == []
    assert scene.versions == [("other", 5), ("sum", 1), ("sum", 2)]
    assert scene.models.find("sum").version == 2
    assert scene.models.find("sum", 1) is scene.models.find_fingerprint(old.fingerprint) is old
    assert (scene.counts.loaded_count, scene.counts.refused_count) == (2, 0)


async def test_a_lower_version_that_comes_later_is_not_the_newest(scene):
    scene.put(7)
    reloading = scene.reloading()
    await reloading.reload()
    scene.put(3)
    await reloading.reload()
    assert [scene.models.find("sum").version, scene.models.find("sum", 3).version] == [7, 3]


async def test_others_get_the_time_to_load_a_version_before_it_is_the_newest(scene):
    reloading = scene.reloading(is_alone=False)
    scene.put(2)
    await reloading.reload()
    assert [scene.models.find("sum").version, scene.models.find("sum", 2).version] == [1, 2]


async def test_a_name_without_other_versions_has_its_newest_at_once(scene):
    scene.put(2, name="other")
    await scene.reloading(is_alone=False).reload()
    assert scene.models.find("other").version == 2


async def test_after_that_time_it_is_the_newest(scene):
    scene.put(2)
    await scene.reloading(is_alone=False, refresh_s=0.0).reload()
    assert scene.models.find("sum").version == 2


async def test_nothing_is_read_twice_that_did_not_change(scene, monkeypatch):
    reloading = scene.reloading()
    await reloading.reload()
    monkeypatch.setattr("service.model.reloading.read_model", lambda *_: pytest.fail("read again"))
    assert await reloading.reload() == []


async def test_loading_is_done_beside_the_event_loop(scene, monkeypatch):
    threads = {}

    def noting(name, function):
        def call(*arguments, **options):
            threads[name] = threading.current_thread()
            return function(*arguments, **options)

        monkeypatch.setattr(reloading, name, call)

    for name in ("list_files", "read_model", "check_model", "load_model"):
        noting(name, getattr(reloading, name))
    scene.put(2)
    await scene.reloading().reload()
    assert len(threads) == 4
    assert threading.current_thread() not in threads.values()


async def test_a_reload_goes_on_when_its_caller_leaves(scene, monkeypatch):
    is_checking, may_end = threading.Event(), threading.Event()

    def check(*_, **__):
        is_checking.set()
        may_end.wait(20)

    monkeypatch.setattr(reloading, "check_model", check)
    scene.put(2)
    caller = asyncio.create_task(scene.reloading().reload())
    await asyncio.to_thread(is_checking.wait, 20)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    may_end.set()
    await asyncio.to_thread(wait_for, lambda: scene.versions == [("sum", 1), ("sum", 2)])


async def test_a_model_that_mixes_rows_is_loaded_once_a_setting_says_so(scene):
    path = scene.path(1, "mean")
    path.parent.mkdir(parents=True)
    path.write_bytes(beside(less_mean))
    [refused] = await scene.reloading().reload()
    assert "--apart NAME=rows" in str(refused)
    assert await scene.reloading(apart={"mean": frozenset({"rows"})}).reload() == []
    assert scene.models.find("mean").contract.apart == {"rows"}


# -- refusals --------------------------------------------------------------------------------------


async def test_a_bad_file_is_refused_once_and_loads_when_it_is_mended(scene, caplog):
    reloading = scene.reloading()
    scene.put_broken(2)
    [refusal] = texts(await reloading.reload())
    assert refusal.startswith(f"{scene.path(2)}: ")
    assert "external data" in refusal
    assert scene.versions == [("sum", 1)]
    for _ in range(3):
        await reloading._look()
    told = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert len(told) == scene.counts.refused_count == scene.counts.standing_count == 1
    scene.put(2)
    assert await reloading.reload() == []
    assert scene.versions == [("sum", 1), ("sum", 2)]
    assert (scene.counts.loaded_count, scene.counts.standing_count) == (1, 0)


async def test_a_bad_file_keeps_no_other_from_being_loaded(scene):
    scene.put_broken(2)
    scene.put(3)
    [refusal] = await scene.reloading().reload()
    assert refusal.path == scene.path(2)
    assert scene.models.find("sum").version == 3


async def test_a_refusal_goes_with_its_file(scene):
    reloading = scene.reloading()
    scene.put_broken(2)
    await reloading.reload()
    shutil.rmtree(scene.path(2).parent)
    assert await reloading.reload() == []
    assert scene.counts.standing_count == 0


async def test_a_version_that_is_exchanged_on_disk_is_refused_until_it_is_put_back(scene):
    served = scene.models.find("sum")
    first = scene.path(1).read_bytes()
    reloading = scene.reloading()
    scene.put(1, other="network")
    assert fingerprint_of(scene.path(1).read_bytes()) != served.fingerprint
    [refusal] = texts(await reloading.reload())
    assert refusal == f"{scene.path(1)}: version 1 of sum changed on disk; give it a new version number"
    assert list(scene.models) == [served]
    scene.path(1).write_bytes(first)
    assert await reloading.reload() == []


async def test_a_version_whose_file_is_gone_is_served_on(scene):
    served = scene.models.find("sum")
    shutil.rmtree(scene.folder)
    [refusal] = texts(await scene.reloading().reload())
    assert refusal.startswith(f"{scene.folder}: not a folder")
    assert scene.models.find("sum") is served


async def test_a_copy_of_what_is_served_is_refused(scene):
    scene.path(2).parent.mkdir()
    shutil.copyfile(scene.path(1), scene.path(2))
    served = scene.models.find("sum")
    [refusal] = texts(await scene.reloading().reload())
    assert "a copy of version 1 of sum" in refusal
    assert scene.models.find_fingerprint(served.fingerprint) is served
    with pytest.raises(ModelFileError, match="a copy of version 1 of sum"):
        ModelRepository(scene.folder)


async def test_what_no_client_could_list_is_refused(scene, monkeypatch):
    """A list of models that is longer than clients receive would be none."""
    [served] = scene.models
    monkeypatch.setattr(repository, "MAX_TEXT_BYTES", 3 * (1024 + served.contract.text_bytes))
    scene.put(2)
    scene.put(3)
    scene.put(4)
    [refusal] = texts(await scene.reloading().reload())
    assert "descriptions of all models" in refusal
    assert len(list(scene.models)) == 3
    with pytest.raises(ModelFileError, match="descriptions of all models"):
        ModelRepository(scene.folder)


async def test_a_reload_tells_of_so_many_files_and_counts_the_others(scene):
    for number in range(MAX_TOLD + 5):
        scene.path(f"v{number}").parent.mkdir()
        scene.path(f"v{number}").touch()
    told = texts(await scene.reloading().reload())
    assert len(told) == MAX_TOLD + 1
    assert told[-1] == f"{scene.folder}: 5 further files are not served"


async def test_two_folders_of_one_version_are_refused(scene):
    scene.put("01")
    with pytest.raises(ModelFileError, match="version 1 of sum comes from another file"):
        ModelRepository(scene.folder)


async def test_a_folder_that_is_no_version_is_refused_alone_and_told_once(scene):
    scene.put("draft")
    scene.put(2)
    reloading = scene.reloading()
    [refusal] = texts(await reloading.reload())
    assert refusal == f"{scene.path('draft')}: version 'draft' is not a number >= 1"
    assert scene.versions == [("sum", 1), ("sum", 2)]
    assert scene.counts.refused_count == scene.counts.standing_count == 1


async def test_a_model_that_this_server_cannot_serve_is_refused_with_the_reason(scene):
    scene.put(2)
    [refusal] = await scene.reloading(why_not=lambda _: "too wide").reload()
    assert (refusal.path, refusal.reason) == (scene.path(2), "too wide")
    assert scene.versions == [("sum", 1)]


async def test_whatever_breaks_in_loading_is_a_refusal_that_a_reload_tries_again(scene, monkeypatch):
    scene.put(2)
    reloading = scene.reloading()

    def break_down(*_, **__):
        raise MemoryError

    monkeypatch.setattr("service.model.reloading.load_model", break_down)
    [refusal] = await reloading.reload()
    assert refusal.reason.startswith("it cannot be loaded now: MemoryError")
    monkeypatch.setattr("service.model.reloading.load_model", load_model)
    assert await reloading.reload() == []
    assert scene.models.find("sum").version == 2


async def test_a_file_that_is_being_written_is_not_tried(scene):
    scene.put(2)
    whole = scene.path(2).read_bytes()
    lengths = iter(range(100, len(whole)))

    def write_on():
        scene.path(2).write_bytes(whole[: next(lengths)])

    write_on()
    scene.counts.after_look = write_on
    reloading = scene.reloading()
    for _ in range(2):
        [refusal] = texts(await reloading.reload())
        assert refusal == (f"{scene.path(2)}: it has just changed; it is tried when it has come to rest")
    assert scene.counts.refused_count == 0
    scene.counts.after_look = lambda: None
    scene.path(2).write_bytes(whole)
    assert await reloading.reload() == []
    assert scene.models.find("sum").version == 2


# -- the place of one that served ------------------------------------------------------------------


def test_who_takes_the_place_of_one_that_served_skips_what_is_bad(scene):
    scene.put_broken(2)
    scene.put("draft")
    models = ModelRepository(scene.folder, skips_refused=True)
    assert [model.version for model in models] == [1]
    with pytest.raises(ModelNotFound):
        models.find("sum", 2)
    with pytest.raises(ModelFileError, match="'draft' is not a number"):
        ModelRepository(scene.folder)


def test_who_has_nothing_to_serve_says_why(scene):
    shutil.rmtree(scene.path(1).parent)
    scene.put_broken(2)
    with pytest.raises(ModelFileError, match="external data"):
        ModelRepository(scene.folder, skips_refused=True)
    shutil.rmtree(scene.path(2).parent)
    with pytest.raises(ModelFileError, match=r"no <name>/<version>/model.onnx"):
        ModelRepository(scene.folder, skips_refused=True)
