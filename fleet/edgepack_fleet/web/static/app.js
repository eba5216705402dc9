import { askAgain, byId, call, logOut, show, start } from "./login.js";

/* Shows what the fleet service knows, as it changes. Everything that is shown is set as text, never
   as markup: names, reasons and labels come from devices and people. */

const RETRY_MS = 2000;
const EVENTS_SHOWN = 200;
const BACKABLE = new Set(["running", "paused", "completed", "completed_with_failures", "aborted"]);
const FINAL = new Set(["completed", "completed_with_failures", "aborted", "rolled_back",
  "rollback_incomplete"]);
const TONE = {
  online: "good", offline: "rest", lost: "bad", stale: "warn", unknown: "rest",
  completed: "good", passed: "good", succeeded: "good", already_installed: "good", pass: "good",
  running: "busy", deploying: "busy", soaking: "busy", gating: "busy", offered: "busy",
  downloading: "busy", verified: "busy", probing: "busy", activating: "busy", probation: "busy",
  rolling_back: "warn", paused: "warn", inconclusive: "warn", regressed: "bad",
  completed_with_failures: "warn", unreachable: "warn", timed_out: "warn",
  failed: "bad", fail: "bad", rolled_back: "bad", rollback_incomplete: "bad", aborted: "bad",
  fell_back: "bad", rejected: "bad", safe_mode: "bad",
};

const REVERTS = {
  asked: ["going back", "warn"], done: ["back on what it ran before", "rest"],
  late: ["late to go back", "bad"], impossible: ["cannot go back", "warn"],
};
const RENDER_LATER_MS = 200;

const state = { devices: [], rollouts: [], events: new Map(), skew: 0, role: "viewer" };
let lastId = "";
let stream = null;

function node(name, options = {}, ...children) {
  const element = document.createElement(name);
  const { text, ...properties } = options;
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("data-") || key === "scope") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

const words = (name) => String(name).replaceAll("_", " ");
const badge = (name) =>
  node("span", { className: `badge ${TONE[name] || "rest"}`, text: words(name) });
const short = (digest) => (digest || "").replace("sha256:", "").slice(0, 12);
const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });

function ago(ms) {
  if (ms === null || ms === undefined) return "never";
  const seconds = Math.max(0, Math.round((Date.now() + state.skew - ms) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/* ---- devices ------------------------------------------------------------------------------- */

/* The second model of a slot: a shadow sees a share of the requests, a split answers it. */
function candidate(one) {
  const share = `${Number((100 * one.share).toPrecision(3))} %`;
  const what = `beside it ${one.version || short(one.wanted)}, ${one.mode} ${share} `;
  const line = node("div", { className: "words", text: what }, badge(one.phase));
  if (one.words) line.append(` ${one.words}`);
  return line;
}

function running(slots) {
  const cell = node("td");
  for (const [name, slot] of Object.entries(slots).sort()) {
    const what = slot.running ? `${name} ${slot.version || "?"} ` : `${name} nothing `;
    const digest = node("span", { className: "digest rest", text: short(slot.running) });
    digest.title = slot.running || "";
    cell.append(node("div", { text: what }, digest));
    if (slot.candidate) cell.append(candidate(slot.candidate));
  }
  if (!cell.hasChildNodes()) cell.textContent = "–";
  return cell;
}

function phases(device) {
  const cell = node("td");
  for (const [, slot] of Object.entries(device.slots).sort()) {
    const line = node("div", {}, badge(slot.phase));
    if (slot.words) line.append(node("span", { className: "words", text: ` ${slot.words}` }));
    cell.append(line);
  }
  if (device.refused) cell.append(node("div", { className: "bad", text: device.refused }));
  return cell;
}

function deviceRow(device) {
  const seen = node("td", { "data-name": "seen", text: ago(device.last_seen_ms) });
  const generation = `${device.generation_seen}/${device.generation_desired}`;
  return node("tr", {},
    node("td", { text: device.id, title: device.hardware_class }),
    node("td", {}, badge(device.presence)),
    running(device.slots), phases(device), seen,
    node("td", { "data-name": "generation", text: generation }));
}

function showDevices() {
  const online = state.devices.filter((device) => device.presence === "online").length;
  byId("devices-count").textContent = `${online} of ${state.devices.length} online`;
  byId("no-devices").hidden = state.devices.length > 0;
  byId("devices").hidden = state.devices.length === 0;
  byId("devices").tBodies[0].replaceChildren(...state.devices.map(deviceRow));
}

/* ---- rollouts ------------------------------------------------------------------------------ */

/* What a device is doing in the rollout: on its way back if it is, else on its way forward. */
function standing(update) {
  if (!update) return ["unknown", "rest"];
  return REVERTS[update.revert] || [words(update.state), TONE[update.state] || "rest"];
}

function counts(stage, updates) {
  const found = new Map();
  for (const device of stage.devices) {
    const [name, tone] = standing(updates[device]);
    found.set(name, { tone, number: (found.get(name)?.number || 0) + 1 });
  }
  return [...found].sort();
}

function stageView(stage, rollout) {
  const found = counts(stage, rollout.updates);
  const bar = node("div", { className: "bar" });
  for (const [name, { tone, number }] of found) {
    const part = node("i", { className: tone, title: `${number} ${name}` });
    part.style.flexGrow = String(number);
    bar.append(part);
  }
  const text = found.map(([name, { number }]) => `${number} ${name}`).join(", ");
  const title = `Stage ${stage.index + 1} of ${rollout.stages.length} (${stage.target}) `;
  const view = node("div", {}, node("h4", { text: title }, badge(stage.state)), bar,
    node("p", { className: "meta", text: text || "no devices of its own" }));
  if (stage.state !== "waiting" && stage.gates.length) view.append(gateTable(stage.gates));
  return view;
}

function gateTable(gates) {
  const rows = gates.map((gate) => node("tr", {},
    node("td", { text: words(gate.gate) }), node("td", {}, badge(gate.verdict)),
    node("td", { className: "words", text: gate.words })));
  const head = ["Gate", "Verdict", "Numbers"].map((text) => node("th", { scope: "col", text }));
  return node("div", { className: "scroll" }, node("table", { className: "gates" },
    node("thead", {}, node("tr", {}, ...head)), node("tbody", {}, ...rows)));
}

function failures(rollout) {
  const rows = Object.entries(rollout.updates)
    .filter(([, update]) => update.words && TONE[update.state] !== "good")
    .map(([device, update]) => node("p", { className: "meta" },
      `${device}: `, badge(update.state), ` ${update.words}`));
  return rows.length ? [node("h4", { text: "Devices with something to say" }), ...rows] : [];
}

function eventList(rollout) {
  const known = state.events.get(rollout.id) || [];
  const items = known.slice(-EVENTS_SHOWN).reverse().map((event) => node("li", {},
    node("time", { text: clock(event.at) }), node("span", { text: event.words })));
  const details = node("details", {}, node("summary", { text: `Events (${rollout.sequence})` }),
    node("ol", { className: "events" }, ...items));
  details.dataset.rollout = rollout.id;
  details.open = opened(rollout);
  return details;
}

function opened(rollout) {
  const before = document.querySelector(`details[data-rollout="${CSS.escape(rollout.id)}"]`);
  return before ? before.open : !FINAL.has(rollout.state);
}

function actions(rollout) {
  const box = node("span", { className: "actions" });
  if (state.role === "viewer") return box;
  const add = (verb, label, className = "") =>
    box.append(node("button", {
      text: label, className, onclick: () => act(rollout, verb), id: `${verb}-${rollout.id}`,
    }));
  if (rollout.state === "running") add("pause", "Pause");
  if (rollout.state === "paused") add("resume", "Resume");
  if (BACKABLE.has(rollout.state)) add("rollback", "Roll back", "danger");
  return box;
}

function rolloutView(rollout) {
  const head = node("div", { className: "head" },
    node("h3", { text: `${rollout.bundle} ${rollout.version} to ${rollout.group} ` }),
    badge(rollout.state),
    node("span", { className: "digest rest", text: short(rollout.digest) }), actions(rollout));
  const view = node("article", { id: `rollout-${rollout.id}` }, head);
  if (rollout.reason) view.append(node("p", { className: "reason", text: rollout.reason }));
  if (rollout.next) view.append(node("p", { className: "meta next", text: `Next: ${rollout.next}` }));
  view.append(...rollout.stages.map((stage) => stageView(stage, rollout)));
  view.append(...failures(rollout), eventList(rollout));
  return view;
}

function showRollouts() {
  if (document.querySelector("#rollouts button:active")) {
    // a button that is replaced while it is pressed would never be clicked
    setTimeout(showRollouts, RENDER_LATER_MS);
    return;
  }
  const focused = document.activeElement?.id;
  byId("no-rollouts").hidden = state.rollouts.length > 0;
  byId("rollouts").replaceChildren(...state.rollouts.map(rolloutView));
  if (focused) byId(focused)?.focus();
}

async function fetchEvents() {
  for (const rollout of state.rollouts) {
    const known = state.events.get(rollout.id) || [];
    const after = known.length ? known[known.length - 1].sequence : 0;
    if (after >= rollout.sequence) continue;
    const path = `/api/v1/rollouts/${encodeURIComponent(rollout.id)}/events?after=${after}`;
    const answer = await call("GET", path);
    if (answer.ok) state.events.set(rollout.id, known.concat((await answer.json()).items));
  }
  showRollouts();
}

async function act(rollout, verb) {
  const sure = verb !== "rollback"
    || confirm(`Return every device from ${rollout.version} to what it ran before?`);
  if (!sure) return;
  const path = `/api/v1/rollouts/${encodeURIComponent(rollout.id)}/${verb}`;
  const answer = await call("POST", path, {});
  if (!answer.ok) link(false, (await answer.json()).detail);
}

/* ---- the connection ------------------------------------------------------------------------ */

function link(live, text) {
  byId("link").className = `link ${live ? "live" : "lost"}`;
  byId("link").textContent = text;
}

function receive(block) {
  let kind = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    if (at < 1) continue;
    const value = line.slice(at + 1).replace(/^ /, "");
    const field = line.slice(0, at);
    if (field === "event") kind = value;
    else if (field === "id") lastId = value;
    else if (field === "data") data.push(value);
  }
  if (data.length) apply(kind, JSON.parse(data.join("\n")));
}

function apply(kind, document_) {
  state.skew = document_.now_ms - Date.now();
  if (kind === "devices") {
    state.devices = document_.items;
    showDevices();
  } else if (kind === "rollouts") {
    state.rollouts = document_.items;
    showRollouts();
    fetchEvents().catch(() => {});
  }
}

async function follow(signal) {
  const headers = lastId ? { "Last-Event-ID": lastId } : {};
  const answer = await call("GET", "/api/v1/stream", undefined, { headers, signal });
  if (answer.status === 401 || answer.status === 403) {
    askAgain((await answer.json()).detail);
    return;
  }
  if (!answer.ok) throw new Error(`the fleet service answers ${answer.status}`);
  link(true, "live");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the fleet service closed the stream");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    blocks.forEach(receive);
  }
}

async function connect() {
  disconnect();
  const { signal } = stream = new AbortController();
  show("view");
  await greet();
  while (!signal.aborted) {
    try {
      await follow(signal);
    } catch (error) {
      if (!signal.aborted) link(false, `${error.message}; trying again`);
    }
    if (!signal.aborted) await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

/* Nothing of what one person saw is left for the next one at this browser. */
function disconnect() {
  if (stream) stream.abort();
  stream = null;
  lastId = "";
  Object.assign(state, { devices: [], rollouts: [], events: new Map(), role: "viewer" });
  showDevices();
  byId("rollouts").replaceChildren();
  // that there is nothing is said by the service, not by this page before it has heard
  byId("devices-count").textContent = "";
  byId("no-devices").hidden = byId("no-rollouts").hidden = true;
  byId("person").hidden = true;
  byId("insecure").hidden = true;
  byId("link").className = "link";
  byId("link").textContent = "not connected";
}

async function greet() {
  const answer = await call("GET", "/api/v1/me").catch(() => null);
  if (!answer || !answer.ok) return;
  const me = await answer.json();
  state.role = me.role;
  const limits = [...me.bundles, ...me.groups].every((one) => one === "*")
    ? "" : `bundles ${me.bundles.join(", ")}; groups ${me.groups.join(", ")}`;
  byId("who").textContent = `${me.name}, ${me.role}${me.login ? "" : " (token)"}`;
  byId("who").title = limits && `limited to ${limits}`;
  byId("person").hidden = false;
  await warn();
}

/* Somebody let the service start although it is not safe: said for as long as it runs. */
async function warn() {
  const answer = await call("GET", "/api/v1/status").catch(() => null);
  if (!answer || !answer.ok) return;
  const { insecure } = await answer.json();
  byId("insecure").hidden = !insecure;
  byId("insecure").textContent = insecure &&
    `This service is insecure (${insecure.settings.join(", ")}). It was started all the same: ${insecure.reason}`;
}

byId("logout").addEventListener("click", logOut);
setInterval(showDevices, 1000);
start(connect, disconnect);
