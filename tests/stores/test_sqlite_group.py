"""A SQLite store whose file a group shares, as Kubernetes mounts volumes with ``fsGroup``."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pay88_adapters import ConfigurationError
from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Window
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.sqlite import SqliteStore, sqlite_store

pytestmark = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can run as other users")

WINDOW = Window("key", 10, 60.0)
GROUP, STRANGERS = 4_242, 4_243
PAGE = Path(__file__).parents[2].joinpath("docs", "deployment", "index.md").read_text(encoding="utf-8")


@pytest.fixture
def volume() -> Iterator[Path]:
    """Make a volume as the kubelet does: root's, of the group, which its files inherit."""
    directory = TemporaryDirectory()
    path = Path(directory.name)
    os.chown(path, 0, GROUP)
    path.chmod(0o2775)
    yield path
    directory.cleanup()


def store_at(volume: Path) -> SqliteStore:
    """Return the store in it."""
    return sqlite_store(f"sqlite:///{volume}/store.db?access=group", Clock())


def as_user(user: int, groups: list[int], act: Callable[[], int]) -> int:
    """Return what *act* returns in a process of that user, whose own group is another."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            os.umask(0o077)
            os._exit(act())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def take_one(volume: Path) -> int:
    """Take a unit; return how many are taken."""
    budget = store_at(volume).budget
    assert budget.acquire_all([WINDOW]).wait == 0
    return len(budget.ages(WINDOW))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_users_of_one_group_share_a_file(volume: Path) -> None:
    """Whichever user created it and its journal, and whatever the umask; no other user can read them."""
    take_one(volume)  # its imports may be unreadable for other users
    for made in volume.iterdir():
        made.unlink()
    for turn, user in enumerate((1_001, 1_002, 1_001), 1):
        assert as_user(user, [GROUP], lambda: take_one(volume)) == turn
    files = list(volume.iterdir())
    assert {each.name for each in files} == {"store.db", "store.db-journal"}
    assert {(stat.S_IMODE(each.stat().st_mode), each.stat().st_gid) for each in files} == {(0o660, GROUP)}


def test_a_file_that_was_mounted_again_is_used(volume: Path) -> None:
    """The kubelet gives the group what the owner has: without the parameter, that is rejected with the way out."""
    path = volume / "store.db"
    alone = sqlite_store(f"sqlite:///{path}", Clock())
    assert alone.budget.acquire_all([WINDOW]).wait == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o660)
    with pytest.raises(ConfigurationError, match="access=group"):
        sqlite_store(f"sqlite:///{path}", Clock())
    with pytest.raises(StoreError, match="access=group"):
        alone.budget.ages(WINDOW)
    assert take_one(volume) == 2


@pytest.mark.parametrize("mode", [0o664, 0o661, 0o666])
def test_rule_15_a_file_that_others_than_the_group_can_use_is_rejected(volume: Path, mode: int) -> None:
    """When the store is made, and later."""
    store = store_at(volume)
    take_one(volume)
    (volume / "store.db").chmod(mode)
    with pytest.raises(ConfigurationError, match="outside the group"):
        store_at(volume)
    with pytest.raises(StoreError, match="outside the group"):
        store.budget.ages(WINDOW)


def test_rule_15_a_file_of_another_group_is_rejected(volume: Path) -> None:
    """Its members are not the directory's."""
    take_one(volume)
    os.chown(volume / "store.db", 0, STRANGERS)
    with pytest.raises(ConfigurationError, match="outside the group"):
        store_at(volume)


@pytest.mark.parametrize(("mode", "said"), [(0o2777, "world-writable"), (0o775, "chmod 2770")])
def test_rule_15_a_directory_that_is_no_groups_is_rejected(volume: Path, mode: int, said: str) -> None:
    """A world-writable one, and one whose files belong to the groups of their makers."""
    volume.chmod(mode)
    with pytest.raises(ConfigurationError, match=said):
        store_at(volume)


@pytest.mark.parametrize("query", ["access=all", "access=", "group", "access=group&access=group", "mode=rwc", ""])
def test_a_parameter_that_is_none_is_rejected(volume: Path, query: str) -> None:
    """With the forms that are right."""
    url = f"sqlite:///{volume}/store.db?{query}"
    if not query:
        sqlite_store(url, Clock())
        return
    with pytest.raises(ConfigurationError, match=r"sqlite:////absolute/path, with \?access=group"):
        sqlite_store(url, Clock())


def test_the_recipe_for_kubernetes_works(volume: Path) -> None:
    """In an ``emptyDir``, which world-writable may write to."""
    [recipe] = re.findall(r"^<!-- kubernetes -->\n```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    [mount] = set(re.findall(r"mountPath: ([^\s}]+)", recipe))
    [command] = re.findall(r"command: \[(.*)\]", recipe)
    [url] = re.findall(r"value: (sqlite:\S+)", recipe)
    volume.chmod(0o2777)
    with pytest.raises(ConfigurationError, match="world-writable"):
        store_at(volume)
    subprocess.run([each.strip(' "').replace(mount, str(volume)) for each in command.split(",")], check=True)
    assert sqlite_store(url.replace(mount, str(volume)), Clock()).budget.acquire_all([WINDOW]).wait == 0
