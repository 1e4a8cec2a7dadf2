"""The emulator's page as a person meets it: in Chromium, with a mouse, with the keyboard alone, on a phone."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pay88_adapters.urllib3
from pay88_adapters import Credentials, RetryPolicy, TokenManager
from pay88_adapters.clock import Clock
from pay88_adapters.testing import Emulator, Hold, ManualClock, Status
from support.chromium import DESKTOP, PHONE, needed, started
from support.leaks import leaked

pytestmark = pytest.mark.browser

IMAGES = Path(__file__).parents[2] / "docs" / "images"


# Whether what has the focus is what is looked for, and whether one can see that it has it
FOCUS = """selector => {
    const at = document.activeElement;
    const style = getComputedStyle(at.matches('.filter input') ? at.nextElementSibling : at);
    return [at.matches(selector), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
}"""
# Count what begins to move
WATCH = """() => {
    window.moved = 0;
    for (const kind of ['transitionrun', 'animationstart']) addEventListener(kind, () => window.moved++, true);
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser."""
    with started() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    """The emulator's clock, a fake one unless a test replaces it."""
    return ManualClock()


@pytest.fixture
def emulator(clock: Clock) -> Iterator[Emulator]:
    """The service."""
    with Emulator(clock=clock) as running:
        yield running


class Merchant:
    """A real client of the emulator. It works on a thread of its own: playwright has an event loop on this one."""

    def __init__(self, emulator: Emulator, agent: str = "billing/2.4") -> None:
        self.emulator = emulator
        credentials = Credentials(emulator.api_key, emulator.merchant_id)
        self.manager = TokenManager(
            credentials, base_url=emulator.url, clock=emulator.clock, retry=RetryPolicy(attempts=1)
        )
        self.pool = pay88_adapters.urllib3.Pay88PoolManager(self.manager, headers={"User-Agent": agent}, retries=False)

    def call(self, path: str = "/api/echo") -> int:
        """Make a call, and return the status."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._call, path).result(20)

    def _call(self, path: str) -> int:
        response = self.pool.request("POST", self.emulator.url + path, json={"amount": 1}, timeout=10)
        status: int = response.status
        return status

    def close(self) -> None:
        """Close what is open."""
        self.pool.clear()
        self.manager.close()


@pytest.fixture
def merchant(emulator: Emulator) -> Iterator[Merchant]:
    """A client."""
    client = Merchant(emulator)
    yield client
    client.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(chromium: Any, emulator: Emulator) -> Iterator[Open]:
    """Open the page in a window of its own, and wait until it is live.

    In every test: nothing is logged as an error or a warning, and no request goes to another server.
    """
    contexts, complaints = list[Any](), list[str]()

    def arrived(message: Any) -> None:
        expected = any(part in message.text for part in ("ERR_", "(Bad Request)"))  # a stopped server, a wrong form
        if message.type in ("error", "warning") and not expected:
            complaints.append(message.text)

    def requested(request: Any) -> None:
        if not request.url.startswith(emulator.page_url):
            complaints.append(f"asked for {request.url}")

    def open_it(**options: Any) -> Any:
        context = chromium.new_context(**{**DESKTOP, **options})
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("console", arrived)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", requested)
        page.goto(emulator.page_url)
        page.wait_for_selector("#link[data-state=live]")
        page.locator("#kind option").nth(13).wait_for(state="attached")  # the page requests them
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(open_page: Open) -> Any:
    """The page on a desktop."""
    return open_page()


def shows(page: Any, selector: str, text: str) -> None:
    """Wait until something on the page has a text in it."""
    page.locator(selector).filter(has_text=text).first.wait_for()


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


def tab_to(page: Any, selector: str) -> None:
    """Press Tab until something has the focus; on the way everything that has it must show it."""
    for _ in range(80):
        page.keyboard.press("Tab")
        seen = page.evaluate(FOCUS, selector)
        assert seen[1], "the focus cannot be seen"
        if seen[0]:
            return
    raise AssertionError(f"{selector} cannot be reached with Tab")


# What it shows


def test_the_page_is_live_and_leaves_the_service_alone(page: Any, emulator: Emulator) -> None:
    """It says where clients have to go, and that nothing was here; its own requests are nothing."""
    assert page.title() == "88Pay emulator"
    shows(page, "#url", emulator.url)
    shows(page, "#no-rows", "No requests yet")
    assert page.locator("[role=meter]").count() == 6
    assert len(emulator.journal) == 0


def test_a_call_appears_in_the_timeline(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """Immediately, above the token request that it needed, with its client and its token."""
    assert merchant.call(f"/api/balance?id={emulator.merchant_id}") == 200
    page.locator("#rows tr").nth(1).wait_for()
    call, token = page.locator("#rows tr").all_inner_texts()
    for part in ("0:00.000", "POST", f"/api/balance?id={emulator.merchant_id}", "200", "ms", "#1", "billing/2.4"):
        assert part in call
    assert "/api/auth/token" in token
    assert "200 issued" in token
    shows(page, "#tokens li", "billing/2.4, 127.0.0.1")
    shows(page, "#tokens li", "0 s old, 60 s left")
    assert page.locator("#count-call").inner_text() == "1"


def test_the_gauges_move(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """Up with each token request, and down when the clock was moved on with the page's own button."""
    minute = page.get_by_role("meter", name="Token requests, 10 a minute")
    hour = page.get_by_role("meter", name="Token requests, 100 an hour")
    assert minute.get_attribute("aria-valuenow") == "0"
    merchant.call()
    page.wait_for_selector(".gauge[aria-valuenow='1']")
    shows(page, ".gauge", "next unit in 60 s")
    page.get_by_label("Advance the clock (seconds)").fill("59.5")
    page.get_by_role("button", name="Advance").click()
    shows(page, ".gauge", "next unit in 1 s")
    shows(page, "#tokens li", "1 s left")
    page.get_by_label("Advance the clock (seconds)").fill("0.5")
    page.get_by_role("button", name="Advance").click()
    page.wait_for_selector(".gauge[aria-valuenow='0']")
    assert [minute.get_attribute("aria-valuetext"), hour.get_attribute("aria-valuetext")] == [
        "0 of 10 used", "1 of 100 used",
    ]  # fmt: skip
    shows(page, "#no-tokens", "No valid token")


def test_the_timeline_can_be_filtered_and_paused(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """What arrives during a pause is there after it."""
    merchant.call()
    emulator.faults.add(Status(503))
    merchant.call()
    shows(page, "#rows tr:nth-child(1)", "503")
    shown = page.locator("#rows tr:visible")
    for name, count in (("Tokens", 1), ("API requests", 2), ("Not 2xx", 1), ("All", 3)):
        page.get_by_role("radio", name=name, exact=True).check(force=True)
        assert shown.count() == count, name
    page.get_by_role("button", name="Pause").click()
    merchant.call()
    shows(page, "#count-call", "3")
    assert shown.count() == 3
    page.get_by_role("button", name="Resume").click()
    assert shown.count() == 4


def test_the_page_reconnects_automatically(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """It says that the emulator is gone, and continues when that is started again."""
    merchant.call()
    emulator.stop()
    page.wait_for_selector("#link[data-state=gone]")
    emulator.start()
    page.wait_for_selector("#link[data-state=live]")
    merchant.call()
    shows(page, "#count-call", "2")


def test_no_secret_reaches_the_browser(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """Neither the page nor any response to it contains one; a new key is removed from the form once it was sent."""
    bodies: list[str] = []
    page.on("response", lambda response: bodies.append("" if "events" in response.url else response.text()))
    merchant.call(f"/api/echo?key={emulator.api_key}&session={'sess_' + 'a' * 36}")
    page.get_by_label("New API key").fill("sk_test_brand_new_and_long")
    page.get_by_role("button", name="Rotate key").click()
    shows(page, "#said", "The new key is accepted")
    shows(page, "#rows tr", "key=•••")
    page.reload()
    shows(page, "#rows tr", "key=•••")
    assert page.get_by_label("New API key").input_value() == ""
    texts = [
        page.content(),
        page.locator("body").inner_text(),
        page.evaluate("JSON.stringify([...state.timeline])"),
        *bodies,
    ]
    assert len(texts) > 6
    assert leaked([*emulator.service.secrets(), "sess_" + "a" * 36], texts) == []


# What it switches


def test_a_fault_is_switched_on_and_off_with_a_click(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """The next call fails, the fault is in the list; off, and the next one works."""
    assert merchant.call() == 200
    switch = page.get_by_role("switch", name="API requests fail")
    switch.click()
    shows(page, "#active li", "Status on call")
    assert (merchant.call(), switch.get_attribute("aria-checked")) == (503, "true")
    shows(page, "#active li", "applied: 1")
    shows(page, "#rows tr", "503")
    switch.click()
    page.wait_for_selector("#active li", state="detached")
    assert (merchant.call(), switch.get_attribute("aria-checked")) == (200, "false")


def test_a_fault_is_switched_on_and_off_with_the_keyboard(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """Tab, Enter and Space reach all of it, and one sees where one is."""
    assert merchant.call() == 200
    tab_to(page, "[role=switch]:nth-child(2)")
    page.keyboard.press("Enter")
    shows(page, "#active li", "Status on call")
    assert merchant.call() == 503
    tab_to(page, "#active button")
    page.keyboard.press("Space")
    page.wait_for_selector("#active li", state="detached")
    assert merchant.call() == 200


def test_a_fault_is_described_with_the_keyboard(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """The form, its choice of kinds and its fields: one 418 on calls to a path."""
    assert merchant.call() == 200
    tab_to(page, "summary")
    page.keyboard.press("Enter")
    tab_to(page, "input[name=status]")
    page.keyboard.type("418")
    tab_to(page, "#on")
    page.keyboard.type("a path")
    tab_to(page, "#path")
    page.keyboard.type("/api/balance")
    page.keyboard.press("Enter")
    shows(page, "#active li", "Status on /api/balance")
    shows(page, "#active li", "status 418 · 1 left")
    assert [merchant.call(), merchant.call("/api/balance"), merchant.call()] == [200, 418, 200]
    page.wait_for_selector("#active li", state="detached")
    tab_to(page, "#timeline, input[name=show], #pause")


def test_every_fault_can_be_added_as_the_form_has_it(page: Any, emulator: Emulator) -> None:
    """Each kind in turn, with what is needed filled in; what is wrong is explained and adds nothing."""
    page.locator("summary").click()
    kinds = page.locator("#kind option").all_inner_texts()
    assert len(kinds) == 14
    page.locator("#times").fill("")
    for count, kind in enumerate(kinds, 1):
        page.locator("#kind").select_option(kind)
        for name, value in (("to", "/elsewhere"), ("body", "{}"), ("headers", "X-One: a b, X-Two: c")):
            if kind in ("Redirect", "Body", "Headers") and page.locator(f"[name={name}]").count():
                page.locator(f"[name={name}]").fill(value)
        page.get_by_role("button", name="Add fault").click()
        page.locator("#active li").nth(count - 1).wait_for()
        rule = list(emulator.faults)[-1]
        assert type(rule.upcoming).__name__ == kind
        if kind == "Headers":
            assert dict(rule.upcoming.headers) == {"X-One": "a b", "X-Two": "c"}  # type: ignore[union-attr]
    page.locator("#kind").select_option("Redirect")
    page.locator("[name=to]").fill("")
    page.get_by_role("button", name="Add fault").click()
    shows(page, "#said", "Redirect needs to")
    page.get_by_role("button", name="Remove all").click()
    page.wait_for_selector("#active li", state="detached")
    assert list(emulator.faults) == []


def test_held_calls_are_released_one_by_one(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """They stand in the timeline as waiting until then."""
    merchant.call()
    page.get_by_role("switch", name="API requests held").click()
    shows(page, "#active li", "0 held")
    calling = threading.Thread(target=merchant.call)
    calling.start()
    shows(page, "#active li", "1 held")
    shows(page, "#rows tr", "waiting")
    page.get_by_role("button", name="Release one of Hold on call").click()
    calling.join(10)
    assert not calling.is_alive()
    shows(page, "#active li", "0 held")
    assert isinstance(next(iter(emulator.faults)).upcoming, Hold)


def test_actions(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """Tokens are rejected, connections dropped, the merchant suspended and reinstated."""
    merchant.call()
    page.get_by_role("button", name="Revoke current tokens").click()
    shows(page, "#tokens li", "rejected")
    page.get_by_role("button", name="Drop connections").click()
    shows(page, "#said", "Drop connections: done.")
    assert emulator.open_connections == 0
    page.get_by_role("button", name="Suspend merchant").click()
    shows(page, "#merchant", "suspended")
    page.get_by_role("button", name="Reinstate merchant").click()
    page.get_by_role("button", name="Suspend merchant").wait_for()
    page.get_by_role("button", name="Reset rate limits").click()
    page.wait_for_selector(".gauge[aria-valuenow='0']")
    assert merchant.call() == 200


# How it looks, to whom


def stage(page: Any, emulator: Emulator, merchant: Merchant) -> None:
    """Fill every part of the page."""
    merchant.call(f"/api/balance?id={emulator.merchant_id}")
    emulator.faults.add(Status(503, {"X-Why": "a rather long reason " * 3}), times=None)
    merchant.call("/api/transactions/charges")
    emulator.hold("/api/" + "long" * 20)
    page.locator("summary").click()
    shows(page, "#active li", "Hold")
    page.locator("#rows tr").nth(2).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_accessible(
    open_page: Open, emulator: Emulator, merchant: Merchant, device: dict[str, Any], scheme: str
) -> None:
    """axe finds nothing: names, roles, contrast, landmarks; and nothing in the tree is without a name."""
    axe = needed("axe_playwright_python.sync_playwright")
    page = open_page(**device, color_scheme=scheme, reduced_motion="reduce")
    stage(page, emulator, merchant)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    tree = page.locator("body").aria_snapshot()
    controls = [line.strip() for line in tree.splitlines() if line.strip().startswith(ROLES)]
    assert len(controls) > 25
    assert [line for line in controls if '"' not in line] == []


ROLES = tuple(f"- {role}" for role in ("button", "switch", "textbox", "spinbutton", "combobox", "radio", "meter"))


def test_a_phone_shows_all_of_it(open_page: Open, emulator: Emulator, merchant: Merchant) -> None:
    """Nothing is wider than the screen, no text is smaller than 12 pixels, and a finger hits every control."""
    page = open_page(**PHONE)
    stage(page, emulator, merchant)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    assert page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(node => node.checkVisibility() && [...node.childNodes]
        .some(child => child.nodeType === 3 && child.textContent.trim()) && !node.closest('svg')
        && parseFloat(getComputedStyle(node).fontSize) < 12).map(node => node.outerHTML)"""
    ) == []  # fmt: skip
    assert page.evaluate("getComputedStyle(document.body).fontSize") == "16px"
    assert page.evaluate(
        """() => [...document.querySelectorAll('button, select, summary, input:not([type=radio])')]
        .filter(node => node.checkVisibility() && node.getBoundingClientRect().height < 32)
        .map(node => node.outerHTML)"""
    ) == []  # fmt: skip


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_those_who_want_no_motion_get_none(open_page: Open, motion: str, moves: bool) -> None:
    """Nothing moves when a switch is turned; for others it does."""
    page = open_page(reduced_motion=motion)
    page.evaluate(WATCH)
    page.get_by_role("switch", name="Responses 2 s late").click()
    shows(page, "#active li", "Latency")
    if moves:
        until(lambda: bool(page.evaluate("window.moved > 0")))
    else:
        page.wait_for_timeout(100)
        assert page.evaluate("window.moved") == 0


@pytest.mark.parametrize("clock", [Clock(20)], ids=["fast"])
def test_the_images_of_the_documentation(
    open_page: Open, emulator: Emulator, merchant: Merchant, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Two clients with errors. The images are small enough; ``--save-images`` puts them where the pages show them."""
    other = Merchant(emulator, "checkout/1.9")
    other.manager.close()
    other.pool = pay88_adapters.urllib3.Pay88PoolManager(
        merchant.manager, headers={"User-Agent": "checkout/1.9"}, retries=False
    )
    pages = {
        "emulator-desktop": open_page(viewport={"width": 1280, "height": 1480}),
        "emulator-phone": open_page(**PHONE),
    }
    for number in range(40):
        if number == 12:
            emulator.service.refuse_current_tokens()
        if number == 22:
            emulator.faults.add(Status(503), times=2)
        client = (merchant, other, merchant)[number % 3]
        client.call("/api/transactions/charges" if number % 3 == 1 else f"/api/balance?id={emulator.merchant_id}")
        time.sleep(0.06)
    with emulator.hold("/api/transactions/") as hold:
        held = threading.Thread(target=other.call, args=("/api/transactions/charges",))
        held.start()
        hold.wait_for(1)
        with emulator.faults.add(Status(500), on="token", times=None):
            for name, page in pages.items():
                shows(page, "#active li", "1 held")
                shows(page, "#rows tr", "waiting")
                page.wait_for_timeout(300)  # until nothing moves
                image = tmp_path / f"{name}.png"
                page.screenshot(path=image)
                size = struct.unpack(">II", image.read_bytes()[16:24])
                assert (image.stat().st_size < 300_000, size[0]) == (True, 1280 if "desktop" in name else 780)
                if pytestconfig.getoption("save_images"):
                    IMAGES.mkdir(exist_ok=True)
                    (IMAGES / image.name).write_bytes(image.read_bytes())
    held.join(10)
    other.close()
