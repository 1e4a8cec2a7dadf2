"""How the site is built: ``tox run -e docs``."""

from __future__ import annotations

import importlib
import re
import sys
from importlib import metadata
from pathlib import Path

import tomllib
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import pay88_adapters

project = "pay88-adapters"
copyright = "the pay88-adapters authors"
release = version = metadata.version(project)
URLS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

sys.path.append(str(Path(__file__).parent))
extensions = [
    "glossary_links", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design",
]  # fmt: skip
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pay88-adapters {release}"
html_copy_source = False
html_baseurl = URLS["Documentation"]
html_theme_options = {
    "announcement": "Not released yet: run pip install '.[…]' in a checkout, not pip install 'pay88-adapters[…]'.",
    "source_repository": URLS["Repository"],
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go, .gd"  # of a diff only the new lines
html_static_path = ["_static"]
html_css_files = ["site.css"]
smartquotes_action = "D"  # dashes; quotes stay as they are typed
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "html_image"]  # pictures with a width are copied, too

VARIABLES = (
    "PAY88_STORE", "PAY88_FALLBACK_STORE", "PAY88_ENVIRONMENT", "PAY88_BASE_URL", "PAY88_API_KEY", "PAY88_MERCHANT_ID",
)  # fmt: skip

# What readers type into the search that is no word of the page, or a number: Sphinx finds numbers in the index alone.
# The words of a section are under PAGE#HEADING.
SEARCH_WORDS = {
    "benchmarks": ("alternatives", "comparison", "memory usage", "overhead", "performance", "slow"),
    "changelog": ("breaking changes", "migration guide", "upgrade", "what is new"),
    "cli": ("pay88", "exit codes"),
    "composition": ("decorator", "order of middleware"),
    "deployment/index": (
        "autoscaling", "docker", "docker compose", "dotenv", ".env", "env file", "distributed lock",
        "file permissions", "horizontal scaling", "k8s", "leader election", "multiple hosts", "multiple pods",
        "multiple processes", "several hosts", "multiple workers", "scaling", "share token",
        "share token between processes", "share token between workers", "share tokens", "systemd",
        *(f"set {name}" for name in VARIABLES),
    ),
    "deployment/gunicorn#Preload and forks": ("gunicorn post_fork", "post_fork", "preload_app"),
    "deployment/serverless": ("disable background refresh",),
    "errors": (
        "302", "400", "401 unauthorized", "403", "404", "408", "409", "422", "500", "502", "503", "504",
        "asyncio.timeout", "budget exhausted", "ConnectionError", "connection refused", "connection reset",
        "double charge", "duplicate charge", "duplicate payment", "error handling", "HTTPStatusError",
        "RemoteDisconnected", "RemoteProtocolError", "ServerDisconnectedError", "suspended", "token budget exhausted",
        "exception", "exceptions", "forbidden", "idempotency key", "MaxRetryError", "payment status", "reconcile",
        "retry_after", "retryable", "retry a payment", "retry payment", "retry payments", "reconciliation", "refund",
        "SSLError", "too many requests", "webhook",
    ),
    "merchants": ("contextvars", "multi-tenant", "multi tenant", "multiple merchants"),
    "operations#Health check": ("health endpoint", "healthcheck", "prefetch token", "warm up", "warmup"),
    "operations": (
        "graceful shutdown", "SIGTERM", "SIGKILL", "liveness", "liveness probe", "monitoring", "readiness",
        "readiness probe", "timeout", "total_timeout", "timeouts", "verbose",
    ),
    "quickstart": ("api key", "bearer token", "example", "first steps", "getting started", "how to", "tutorial"),
    "reference/stores": VARIABLES,
    "rules#20. Retries": (
        "disable retries", "disable retry", "how to retry", "no retries", "retries", "retry", "turn off retries",
    ),
    "rules": (
        "jitter", "request coalescing", "session id", "stampede", "throttling", "thundering herd", "x-session-id",
    ),
    "runbook": ("alert", "alerts", "incident", "on call"),
    "security": ("gdpr", "mask secrets", "pii", "secrets in logs"),
    "stacks/aiohttp": ("websocket",),
    "stacks/httpx": ("http/2", "http2"),
    "stacks/index": (
        "CA bundle", "CA certificate", "certificate", "custom CA", "mTLS", "SSL", "SSL certificate",
        "TLS certificate",
    ),
    "stacks/requests": ("HTTPAdapter",),
    "support": (
        "bug report", "mypy", "nogil", "py.typed", "PyPy", "python 3.10", "python 3.14", "pyright", "type hints",
        "type hints mypy", "typed", "typing", "windows",
    ),
    "testing#Several workers": ("parallel", "parallel tests", "pytest parallel", "tests in parallel"),
    "testing#Time": ("simulate timeout", "test timeout"),
    "testing": (
        "conftest", "fake clock", "fixture", "freeze time", "how to test", "monkeypatch", "unit test", "unit testing",
        "unit tests",
    ),
    "tools/doubles": ("fake server", "mock server", "stub", "test double"),
    "tools/queues": ("apscheduler", "cron", "huey", "rq", "task queue"),
    "troubleshooting": (
        "429 token request", "permission denied", "sqlite permission denied", "too many token requests", "401",
        "401 after deploy", "401 error", "401 unauthorized", "429", "allowlist", "clock skew", "database is locked",
        "event loop is closed", "expired token", "faq", "hang", "invalid api key", "invalid token", "ntp",
        "rate limit 429", "token expired", "token expires", "unclosed session", "whitelist", "wrong key",
    ),
}  # fmt: skip

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

suppress_warnings = ["misc.highlighting_failure"]  # what commands print is in no language
nitpicky = True
nitpick_ignore_regex = [
    # Other libraries' names: the build needs no network.
    (
        "py:.*",
        r"(urllib3|requests|httpx2?|aiohttp|limits|ssl|contextlib|collections|opentelemetry|random|threading|types|typing)\..*",
    ),
    ("py:class", r"pay88_adapters\.core\..*"),  # what users know under a shorter name
    ("py:class", r"pay88_adapters\.testing\.(isolation|messages)\..*"),
    ("py:class", r"tuple\[str"),  # what Sphinx makes of a type alias
    # Type variables.
    ("py:class", r"(pay88_adapters\.[\w.]+\.)?(R|R_contra|P|S|C|F|\w+T)"),
    ("py:class", r"(pay88_adapters\.engine\.stand_ins\.)?AnyManager"),  # a union of two that are in the reference
]


def _public_modules() -> list[str]:
    """Every module that says what is public in it, but for the command line's and those within packages."""
    root = Path(pay88_adapters.__file__).parent
    files = [path for path in sorted([*root.glob("*.py"), *root.glob("*/__init__.py")]) if "cli" not in path.parts]
    public = [path.relative_to(root.parent) for path in files if "\n__all__ = " in path.read_text(encoding="utf-8")]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in public]


PARTS = {
    "ConnectionFailure": {"refine"},
    "Clock": {"wall", "real", "nap", "wait", "wait_in_task", "pause", "sleep"},
    "FaultPlan": {"unread", "delays", "outcome"},
    "Hold": {"passed"},
    "Journal": {"arrived", "finished"},
    "ManualClock": {"wait", "wait_in_task", "pause", "sleep"},
    "Pay88Retry": {"new", "is_retry", "increment", "after", "plain"},  # of urllib3's Retry
    "Rule": {"peek", "take"},
    "Service": {"masked", "trace", "count"},
    "Token": {"attached", "encoded", "raw"},  # for adapters
    "TokenPolicy": {
        "windows",
        "trusted_after",
        "full_pool_pause",
        "guard",
        "timeout_after",
        "lease_duration",
        "extended_lease_duration",
        "rate_limits",
    },
    "Emulator": {"release_sockets"},
}
"""Members of public classes that parts of the package use among themselves."""


def members(name: str, value: object) -> set[str]:
    """Return the public methods and properties that a class of the package defines."""
    if not (isinstance(value, type) and value.__module__.startswith("pay88_adapters")) or value.__name__ != name:
        return set()  # of another package, or an alias
    kinds = (property, classmethod, staticmethod)
    found = {each for each, what in vars(value).items() if callable(what) or isinstance(what, kinds)}
    return {each for each in found if not each.startswith("_")} - PARTS.get(name, set())


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn, which ends the build, of what is public and not in the reference."""
    documented = env.domains["py"].objects  # type: ignore[attr-defined]
    for module in _public_modules():
        for name in importlib.import_module(module).__all__:
            if f"{module}.{name}" not in documented and f"pay88_adapters.{name}" not in documented:
                logging.getLogger(__name__).warning("%s.%s is public and not in the reference", module, name)
            for member in members(name, getattr(importlib.import_module(module), name)):
                if not any(each.endswith(f".{name}.{member}") for each in documented):
                    logging.getLogger(__name__).warning("%s.%s.%s is not in the reference", module, name, member)


def own_docstrings(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Leave out the docstring of a built-in class, which Sphinx shows for a constant without one."""
    if what == "data" and getattr(value, "__doc__", None) == type(value).__doc__:
        inherited = (type(value).__doc__ or "").split()
        if " ".join(lines).split() == inherited:
            lines.clear()


def add_search_words(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the search words of a page into the index, below its title or the heading that they belong to."""
    for place, words in SEARCH_WORDS.items():
        page, _, heading = place.partition("#")
        if page == docname:
            # Below the comments, too: an entry in front of a comment has no anchor.
            found = re.search(rf"^#+ {re.escape(heading) or '.*'}$(\s*<!--.*?-->)*", source[0], re.MULTILINE)
            end = found.end() if found else len(source[0])
            entries = ", ".join(f"! {word}" for word in words)
            source[0] = f"{source[0][:end]}\n\n```{{index}} {entries}\n```\n{source[0][end:]}"


def mark_long_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give code in tables a class if it may break on a phone: that is wide, or in a table with many columns."""
    for group in doctree.findall(nodes.tgroup):
        longest = 24 if group["cols"] < 4 else 12
        for literal in group.findall(nodes.literal):
            if len(literal.astext()) > longest:
                literal["classes"].append("long")


def setup(app: Sphinx) -> None:
    """Register the check, the search words and the marks."""
    app.connect("autodoc-process-docstring", own_docstrings)
    app.connect("source-read", add_search_words)
    app.connect("doctree-resolved", mark_long_names)
    app.connect("env-check-consistency", check_reference)
