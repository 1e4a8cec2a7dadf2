// Listens to `events`, draws the state, and sends the actions of the controls.
// What happens by itself (a token ages, the clock goes) is worked out here, from instants.
"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = 200;
const SPAN = 120; // seconds of the emulator's clock in the lanes
const still = matchMedia("(prefers-reduced-motion: reduce)");
const PRESETS = [
  ["Token endpoint fails", { fault: "Status", status: 500, on: "token" }],
  ["API requests fail", { fault: "Status", status: 503, on: "call" }],
  ["Tokens rejected", { fault: "RejectToken", on: "call" }],
  ["API requests limited", { fault: "TooMany", on: "call" }],
  ["Connections reset", { fault: "ResetAfterRead", on: "call" }],
  ["Responses 2 s late", { fault: "Latency", seconds: 2, on: "any" }],
  ["API requests held", { fault: "Hold", on: "call" }],
  ["Token requests held", { fault: "Hold", on: "token" }],
];

const state = { now: 0, at: performance.now(), emulator: { speed: 1, started_at: 0, lifetime: 60 },
  windows: [], tokens: [], faults: [], counts: {}, timeline: new Map() };
let paused = false;
let kinds = [];

// Small things

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function draw(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

const write = (node, text) => { if (node.textContent !== String(text)) node.textContent = text; };

const now = () => state.now + ((performance.now() - state.at) / 1000) * state.emulator.speed;

function span(seconds) {
  const whole = Math.max(0, Math.ceil(seconds - 1e-6));
  return whole < 100 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function instant(at, digits = 3) {
  const seconds = Math.max(0, at - state.emulator.started_at);
  const minutes = Math.floor(seconds / 60);
  const rest = (digits ? seconds - minutes * 60 : Math.floor(seconds - minutes * 60)).toFixed(digits);
  return `${minutes}:${rest.padStart(digits ? 3 + digits : 2, "0")}`;
}

function took(entry) {
  if (entry.took === null) return "…";
  return entry.took < 0.9995 ? `${(entry.took * 1000).toFixed(entry.took < 0.01 ? 1 : 0)} ms` : `${entry.took.toFixed(2)} s`;
}

function tone(entry) {
  if (!entry.finished) return "open";
  if (entry.status === null || entry.status >= 500) return "bad";
  return entry.status >= 300 ? "late" : "good";
}

const fullness = (used, limit) => (used >= limit ? "bad" : used >= limit * 0.75 ? "late" : "good");
const period = (seconds) => ({ 60: "a minute", 3600: "an hour" })[seconds] ?? `in ${seconds} s`;

// Asking for something

async function ask(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (response.status === 204) return null;
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function attempt(done, act) {
  try {
    await act();
    say(done);
    return true;
  } catch (error) {
    say(error instanceof TypeError ? "The emulator does not answer." : error.message, true);
    return false;
  }
}

let silence = 0;

function say(text, bad = false) {
  const said = $("said");
  clearTimeout(silence);
  silence = setTimeout(() => { said.textContent = ""; }, bad ? 12000 : 5000);
  said.toggleAttribute("data-bad", bad);
  said.textContent = text;
}

// The header

function drawHeader() {
  const { emulator, counts } = state;
  write($("url"), emulator.url ?? "");
  write($("url-again"), emulator.url ?? "");
  write($("merchant"), `${emulator.merchant ?? ""}${emulator.suspended ? ", suspended" : ""}`);
  write($("count-token"), counts.token_requests ?? 0);
  write($("count-call"), counts.calls ?? 0);
  $("advance").hidden = !emulator.movable;
  $("suspend").setAttribute("aria-pressed", Boolean(emulator.suspended));
  write($("suspend"), emulator.suspended ? "Reinstate merchant" : "Suspend merchant");
}

function link(name, text) {
  $("link").dataset.state = name;
  write($("link"), text);
}

// Budgets

const ARC = "M 14 74 A 56 56 0 0 1 126 74";

function gauge(window) {
  const svg = draw("svg", { viewBox: "0 0 140 84", "aria-hidden": "true" });
  svg.append(
    draw("path", { d: ARC }), draw("path", { d: ARC, class: "value", pathLength: 100, "stroke-dasharray": "100 200" }),
    draw("text", { x: 70, y: 62 }), draw("text", { x: 70, y: 80, class: "of" }, `of ${window.limit} used`),
  );
  return make("div", { class: "gauge", role: "meter", "aria-valuemin": 0, "aria-valuemax": window.limit }, svg,
    make("p", {}, make("strong", {}, `${window.limit} ${period(window.seconds)}`)), make("p", { class: "quiet" }));
}

function bar(window) {
  return make("div", { class: "bar", role: "meter", "aria-valuemin": 0, "aria-valuemax": window.limit },
    make("span"), make("span"), make("div", { class: "track" }, make("i")));
}

const nodes = new Map();

function drawWindows() {
  const merchants = new Set(state.windows.map((window) => window.merchant));
  const seen = new Set();
  for (const window of state.windows) {
    const name = JSON.stringify([window.group, window.merchant, window.limit, window.seconds]);
    const token = window.group === "token";
    seen.add(name);
    if (!nodes.has(name)) {
      nodes.set(name, token ? gauge(window) : bar(window));
      $(token ? "gauges" : "bars").append(nodes.get(name));
    }
    const node = nodes.get(name);
    const whose = merchants.size > 1 ? `, ${window.merchant || "no merchant"}` : "";
    const label = `${token ? "token requests" : window.group}, ${window.limit} ${period(window.seconds)}${whose}`;
    node.setAttribute("aria-label", label[0].toUpperCase() + label.slice(1));
    node.setAttribute("aria-valuenow", Math.min(window.used, window.limit));
    node.setAttribute("aria-valuetext", `${window.used} of ${window.limit} used`);
    node.className = `${token ? "gauge" : "bar"} ${fullness(window.used, window.limit)}`;
    const share = Math.min(1, window.limit ? window.used / window.limit : 1);
    if (token) {
      const value = node.querySelector(".value");
      value.setAttribute("stroke-dashoffset", 100 - share * 100);
      value.style.visibility = share ? "visible" : "hidden"; // a round cap would show
      write(node.querySelector("text"), window.used);
      write(node.querySelector("p.quiet"), freed(window) + whose);
    } else {
      write(node.firstChild, `${window.group[0].toUpperCase()}${window.group.slice(1)}, ${period(window.seconds)}${whose}`);
      write(node.childNodes[1], `${window.used} of ${window.limit} used`);
      node.querySelector("i").style.transform = `scaleX(${share})`;
    }
  }
  for (const [name, node] of nodes) {
    if (!seen.has(name)) { node.remove(); nodes.delete(name); }
  }
  document.querySelector(".budget h3").hidden = !$("bars").firstChild;
}

const freed = (window) => (window.frees_at === null ? "none used" : `next unit in ${span(window.frees_at - now())}`);

// Tokens

function drawTokens() {
  const tokens = state.tokens.filter((token) => token.expires_at > now());
  const shown = JSON.stringify(tokens.map((token) => [token, span(Math.floor(now() - token.issued_at)), span(token.expires_at - now())]));
  if (shown === drawTokens.shown) return; // what is there can be selected, and read out in peace
  drawTokens.shown = shown;
  $("no-tokens").hidden = tokens.length > 0;
  $("tokens").replaceChildren(...tokens.map((token) => {
    const left = token.expires_at - now();
    const share = Math.min(1, left / (token.expires_at - token.issued_at));
    const fill = make("i");
    fill.style.transform = `scaleX(${share})`;
    const shade = token.rejected ? "bad" : share < 1 / 6 ? "late" : "good";
    return make("li", { class: shade },
      make("div", { class: "name" }, make("b", {}, `#${token.serial}`),
        token.rejected ? make("span", { class: "tag" }, "rejected") : null,
        make("span", { class: "quiet" }, `${span(Math.floor(now() - token.issued_at))} old, ${span(left)} left`)),
      make("div", { class: "track", "aria-hidden": "true" }, fill),
      token.users.length ? make("ul", { "aria-label": `Users of token ${token.serial}` }, ...token.users.map((user) =>
        make("li", {}, make("span", {}, `${user.client || "no User-Agent"}, ${user.peer}`),
          make("span", {}, `${user.calls} ${user.calls === 1 ? "request" : "requests"}`)))) : null);
  }));
}

// Faults

const describe = (parameters) => Object.entries(parameters).filter(([, value]) => value !== null && value !== "" &&
  !(typeof value === "object" && !Object.keys(value).length)).map(([name, value]) =>
  `${name.replaceAll("_", " ")} ${typeof value === "object" ? Object.entries(value).map((pair) => pair.join(": ")).join(", ") : value}`).join(", ");

function matches(rule, preset) {
  const { fault, on, ...parameters } = preset;
  return rule.fault === fault && rule.on === on && rule.times === null && rule.probability === 1 &&
    Object.entries(parameters).every(([name, value]) => rule.parameters[0][name] === value);
}

function drawFaults() {
  $("no-faults").hidden = state.faults.length > 0;
  $("clear-faults").hidden = state.faults.length === 0;
  PRESETS.forEach(([, preset], index) => {
    const on = state.faults.some((rule) => matches(rule, preset));
    $("presets").children[index].setAttribute("aria-checked", on);
  });
  const list = $("active"), known = new Map([...list.children].map((item) => [item.dataset.rule, item]));
  const items = state.faults.map((rule) => known.get(String(rule.id)) ?? buildFault(rule));
  // A button that is replaced between a key's going down and its coming up is not pressed: what is there stays.
  if (items.length !== known.size || items.some((item) => !item.isConnected)) {
    const focused = document.activeElement?.dataset?.fault;
    list.replaceChildren(...items);
    if (focused) list.querySelector(`[data-fault="${focused}"]`)?.focus();
  }
  state.faults.forEach((rule, index) => items[index].querySelector("small").replaceChildren(hintsOf(rule)));
}

function hintsOf(rule) {
  return [rule.fault === "Hold" ? `${rule.held} held` : "", rule.parameters.map(describe).filter(Boolean).join("; "),
    rule.after ? `after ${rule.after} more` : "", rule.probability < 1 ? `chance ${Math.round(rule.probability * 1000) / 10} %` : "",
    rule.times === null ? "until removed" : `${rule.times} left`, `applied: ${rule.used}`].filter(Boolean).join(" · ");
}

function buildFault(rule) {
  const name = `${rule.fault} on ${rule.on}`;
  const remove = make("button", { type: "button", "data-fault": `remove ${rule.id}`, "aria-label": `Remove ${name}` }, "Remove");
  remove.addEventListener("click", () => attempt(`${name} removed.`, () => ask("DELETE", `faults/${rule.id}`)));
  let release = null;
  if (rule.fault === "Hold") {
    release = make("button", { type: "button", "data-fault": `release ${rule.id}`, "aria-label": `Release one of ${name}` }, "Release one");
    release.addEventListener("click", () => attempt("Let go.", () => ask("POST", "actions", { do: "release", id: rule.id })));
  }
  return make("li", { "data-rule": rule.id }, make("div", {}, make("strong", {}, rule.fault), ` on ${rule.on}`, make("small", {})), release, remove);
}

function buildPresets() {
  for (const [title, preset] of PRESETS) {
    const button = make("button", { type: "button", role: "switch", "aria-checked": "false" }, title);
    button.addEventListener("click", () => {
      const active = state.faults.filter((rule) => matches(rule, preset));
      if (!active.length) return attempt(`${title}: on.`, () => ask("POST", "faults", { ...preset, times: null }));
      return attempt(`${title}: off.`, () => Promise.all(active.map((rule) => ask("DELETE", `faults/${rule.id}`))));
    });
    $("presets").append(button);
  }
}

const NUMBERS = new Set(["seconds", "status", "missing", "size"]);

function buildParameters() {
  const kind = kinds.find((each) => each.fault === $("kind").value);
  if (!kind) return;
  write($("about"), kind.about);
  $("parameters").replaceChildren(...Object.entries(kind.parameters).map(([name, value]) => {
    const title = { headers: "Headers (Name: value)", to: "To (URL)" }[name] ?? name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
    if (typeof value === "boolean") return make("label", { class: "check" }, make("input", { type: "checkbox", name }), title);
    const shown = Array.isArray(value) || value === "same" ? "" : name === "seconds" ? (value ?? 1) : (value ?? "");
    const number = NUMBERS.has(name) ? { type: "number", min: 0, step: name === "seconds" ? "any" : 1, required: "" } : { autocomplete: "off", spellcheck: "false" };
    return make("label", {}, title, make("input", { name, value: String(shown), placeholder: value === "same" ? "same" : null, ...number }));
  }));
  const hold = kind.fault === "Hold";
  for (const id of ["times", "after", "chance"]) $(id).disabled = hold;
}

function parameter(input) {
  if (input.type === "checkbox") return input.checked;
  const value = input.value;
  if (NUMBERS.has(input.name)) return Number(value);
  if (input.name === "headers") {
    return Object.fromEntries(value.split(/,(?=[^,]*:)/).map((line) => line.split(/:(.*)/s).slice(0, 2).map((part) => (part ?? "").trim())));
  }
  return /^retry_after$|^body_retry_after$/.test(input.name) && value.trim() !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
}

function addFault(event) {
  event.preventDefault();
  const body = { fault: $("kind").value, on: $("on").value === "/" ? $("path").value : $("on").value };
  const untouched = kinds.find((each) => each.fault === body.fault).parameters;
  for (const input of $("parameters").querySelectorAll("input")) {
    // An empty field means what goes without saying, but for a header that the fault can leave out.
    if (input.type === "checkbox" || input.value !== "") body[input.name] = parameter(input);
    else if (input.name === "retry_after") body.retry_after = null;
    else if (untouched[input.name] !== null && typeof untouched[input.name] === "string" && untouched[input.name] !== "same") body[input.name] = "";
  }
  if (body.fault === "Hold") body.times = null;
  else {
    body.times = $("times").value === "" ? null : Number($("times").value);
    body.after = Number($("after").value);
    body.probability = Number($("chance").value) / 100;
  }
  attempt(`${body.fault} added.`, () => ask("POST", "faults", body));
}

async function loadKinds() {
  ({ kinds } = await ask("GET", "faults"));
  const chosen = $("kind").value;
  $("kind").replaceChildren(...kinds.map((kind) => make("option", {}, kind.fault)));
  $("kind").value = kinds.some((kind) => kind.fault === chosen) ? chosen : "Status";
  if (!chosen) buildParameters();
}

// The timeline

const rows = new Map();

function row(entry) {
  const odd = entry.finished ? (entry.status ?? "no response") : "waiting";
  const words = entry.event && !["echo", "balance", "charged", "failed"].includes(entry.event) ? ` ${entry.event}` : "";
  const token = entry.token === null ? "" : `#${entry.token}${entry.token_age === null ? "" : `, ${span(Math.floor(entry.token_age))} old`}`;
  const cell = (name, ...children) => make("td", { role: "cell", class: name }, ...children);
  return make("tr", { role: "row", class: `kind-${entry.kind} ${tone(entry)}`, "data-n": entry.n },
    cell("time", instant(entry.at)), cell("request", make("b", {}, entry.method), entry.path),
    cell("answer", make("span", { class: "tag" }, `${odd}${words}`)), cell("took", took(entry)), cell("token", token),
    cell("client", `${entry.client.split(" ")[0] || "no User-Agent"} ${entry.peer}`),
    cell("fault", ...(entry.fault ? [make("span", { class: "tag late" }, entry.fault)] : [])));
}

function wanted(entry) {
  const show = document.querySelector("input[name=show]:checked").value;
  return show === "all" || (show === "odd" ? tone(entry) !== "good" : entry.kind === show);
}

function drawRows(changed, arriving = true) {
  if (paused) return;
  for (const entry of changed) {
    const fresh = row(entry);
    const old = rows.get(entry.n);
    fresh.hidden = !wanted(entry);
    rows.set(entry.n, fresh);
    if (old) old.replaceWith(fresh);
    else {
      fresh.classList.toggle("new", arriving);
      const next = [...$("rows").children].find((each) => Number(each.dataset.n) < entry.n);
      $("rows").insertBefore(fresh, next ?? null);
    }
  }
  for (const [n, node] of rows) {
    if (!state.timeline.has(n)) { node.remove(); rows.delete(n); }
  }
  $("no-rows").hidden = [...rows.values()].some((node) => !node.hidden);
}

function redrawRows() {
  for (const node of rows.values()) node.remove();
  rows.clear();
  drawRows([...state.timeline.values()], false);
}

function remember(entries) {
  for (const entry of entries) state.timeline.set(entry.n, entry);
  const latest = Math.max(0, ...state.timeline.keys());
  for (const n of state.timeline.keys()) if (n <= latest - KEPT) state.timeline.delete(n);
}

// The lanes: tokens as bars, requests as marks

function drawLanes() {
  const canvas = $("lanes");
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name}`);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const narrow = width < 500;
  const left = narrow ? 0 : 104;
  const end = now();
  const x = (at) => left + (width - left - 4) * (1 - (end - at) / SPAN);
  const top = narrow ? 24 : 14; // narrow lanes have their names above
  const lanes = [["Tokens", top], ["Token requests", top + 38], ["API requests", top + 76]];
  pen.textBaseline = "middle";
  lanes.forEach(([name, y]) => {
    pen.fillStyle = color("soft");
    pen.beginPath();
    pen.roundRect(left, y - (narrow ? 8 : 13), width - left, narrow ? 18 : 26, 6);
    pen.fill();
    pen.fillStyle = color("quiet");
    pen.fillText(name, narrow ? 2 : 0, narrow ? y - 15 : y);
  });
  pen.fillStyle = color("quiet");
  for (let ago = 0; ago <= SPAN; ago += 30) {
    const text = ago ? `−${ago} s` : "now";
    const at = Math.min(width - pen.measureText(text).width, Math.max(left, x(end - ago) - pen.measureText(text).width / 2));
    pen.fillText(text, at, height - 8);
  }
  pen.save();
  pen.beginPath();
  pen.rect(left, 0, width - left, height);
  pen.clip();
  const half = narrow ? 6 : 8;
  for (const entry of state.timeline.values()) {
    if (end - entry.at > SPAN + state.emulator.lifetime) continue;
    if (entry.event === "issued") lane(pen, entry, x, end, half, top, color);
    pen.fillStyle = color(tone(entry));
    pen.beginPath();
    pen.roundRect(x(entry.at) - 2, (entry.kind === "token" ? lanes[1][1] : lanes[2][1]) - half + (narrow ? 1 : 0), 4, half * 2, 2);
    pen.fill();
  }
  pen.restore();
}

function lane(pen, entry, x, end, half, top, color) {
  const known = state.tokens.find((token) => token.serial === entry.token);
  const until = Math.min(end, entry.at + state.emulator.lifetime);
  const width = Math.max(6, x(until) - x(entry.at) - 1);
  const shade = known?.rejected ? "bad" : known ? "good" : "quiet";
  pen.fillStyle = color(known ? `${shade}-soft` : "line");
  pen.strokeStyle = color(shade);
  pen.lineWidth = 1;
  pen.beginPath();
  pen.roundRect(x(entry.at), top - half, width, half * 2 + (half < 8 ? 2 : 0), 4);
  pen.fill();
  pen.stroke();
  if (width > 30) {
    pen.fillStyle = color(shade);
    pen.fillText(`#${entry.token}`, Math.max(x(entry.at), x(end - SPAN)) + 6, top + 1);
  }
}

// Listening

let source = null;

function listen() {
  source = new EventSource("events");
  source.addEventListener("state", (event) => {
    state.timeline.clear();
    take(JSON.parse(event.data), false);
    redrawRows();
    link("live", "Live");
    loadKinds().catch(() => {});
  });
  source.addEventListener("change", (event) => take(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    link("gone", "No connection, trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

function take({ timeline = [], ...parts }, arriving = true) {
  Object.assign(state, parts, { at: performance.now() });
  remember(timeline);
  drawHeader();
  drawWindows();
  drawTokens();
  if (parts.faults) drawFaults();
  drawRows(timeline, arriving);
  drawLanes();
}

function tick() {
  if (document.hidden) return;
  write($("clock"), instant(now(), 0));
  drawWindows();
  drawTokens();
}

let drawn = 0;

function frame(at) {
  if (at - drawn >= (still.matches ? 1000 : 50)) {
    drawn = at;
    drawLanes();
  }
  requestAnimationFrame(frame);
}

// Switches

function wire() {
  buildPresets();
  for (const button of document.querySelectorAll("[data-do]")) {
    button.addEventListener("click", () => attempt(`${button.textContent}: done.`, () => ask("POST", "actions", { do: button.dataset.do })));
  }
  $("suspend").addEventListener("click", () => {
    const action = state.emulator.suspended ? "reinstate" : "suspend";
    attempt(action === "suspend" ? "Suspended." : "Reinstated.", () => ask("POST", "actions", { do: action }));
  });
  $("rotate").addEventListener("submit", async (event) => {
    event.preventDefault();
    const done = await attempt("The new key is accepted, the old ones no more.", () => ask("POST", "actions", { do: "rotate_key", api_key: $("key").value }));
    if (done) $("key").value = "";
  });
  $("advance").addEventListener("submit", (event) => {
    event.preventDefault();
    const seconds = Number($("seconds").value);
    attempt(`Clock advanced by ${seconds} s.`, () => ask("POST", "actions", { do: "advance", seconds }));
  });
  $("add").addEventListener("submit", addFault);
  $("kind").addEventListener("change", buildParameters);
  $("on").addEventListener("change", () => { $("path-label").hidden = $("on").value !== "/"; });
  $("clear-faults").addEventListener("click", () => attempt("All faults removed.", () => ask("DELETE", "faults")));
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", paused);
    write($("pause"), paused ? "Resume" : "Pause");
    if (!paused) redrawRows();
  });
  for (const choice of document.querySelectorAll("input[name=show]")) choice.addEventListener("change", redrawRows);
}

wire();
drawWindows();
listen();
setInterval(tick, 250);
requestAnimationFrame(frame);
