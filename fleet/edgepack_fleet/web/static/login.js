/* Who looks at the page: a person with a cookie that scripts cannot read, or an access token that
   stays in this tab. */

const KEY = "edgepack-token";
const LOGIN = "/api/v1/login";

let onIn = () => {};
let onOut = () => {};
let code = "";
let creation = null;

export const byId = (id) => document.getElementById(id);

export function call(method, path, body, more = {}) {
  const headers = { ...more.headers };
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return fetch(path, {
    method, headers, signal: more.signal, cache: "no-store", credentials: "same-origin",
    body: body === undefined ? undefined : JSON.stringify(body),
  });
}

/* Ask who looks; say why when they are not let in any more. */
export function askAgain(text) {
  sessionStorage.removeItem(KEY);
  onOut();
  show("login");
  say(text);
  fetch(LOGIN, { cache: "no-store" }).then((answer) => answer.json()).then((ways) => {
    byId("passkey").hidden = !hasPasskeys(ways.passkeys);
  }).catch(() => {});
}

export async function logOut() {
  let words = "You are logged out.";
  if (!sessionStorage.getItem(KEY)) {
    const answer = await call("POST", "/api/v1/logout", {}).catch((error) => error);
    const out = answer.ok || answer.status === 401;
    if (!out) words = `This browser is still logged in (${answer.status || answer.message}).`;
  }
  askAgain(words);
}

export function show(name) {
  for (const id of ["login", "choose", "view"]) byId(id).hidden = id !== name;
  byId("login-words").hidden = name === "view";
  const first = { login: "name", choose: "new-password" }[name];
  if (first) byId(first).focus();
}

function say(text) {
  byId("login-words").textContent = text;
}

/* ---- passkeys ------------------------------------------------------------------------------ */

/* A passkey belongs to a host name, and a browser gives it to a page of that name only. */
function hasPasskeys(host) {
  return Boolean(host) && host === location.hostname && Boolean(window.PublicKeyCredential);
}

function bytes(text) {
  const raw = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(raw, (one) => one.charCodeAt(0));
}

function text64(buffer) {
  const raw = String.fromCharCode(...new Uint8Array(buffer));
  return btoa(raw).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function passkeyOf(credential, challenge, fields) {
  const response = fields.map((name) => [name, text64(credential.response[name])]);
  return { id: credential.id, challenge, response: Object.fromEntries(response) };
}

async function makePasskey() {
  const publicKey = {
    ...creation,
    challenge: bytes(creation.challenge),
    user: { ...creation.user, id: bytes(creation.user.id) },
  };
  const made = await navigator.credentials.create({ publicKey });
  const passkey = passkeyOf(made, creation.challenge, ["clientDataJSON", "attestationObject"]);
  return call("POST", `${LOGIN}/code/passkey`, { code, passkey });
}

async function usePasskey() {
  const begun = await call("POST", `${LOGIN}/passkey:begin`, {});
  if (!begun.ok) return begun;
  const { options } = await begun.json();
  const publicKey = { ...options, challenge: bytes(options.challenge) };
  const used = await navigator.credentials.get({ publicKey });
  const fields = ["clientDataJSON", "authenticatorData", "signature"];
  return call("POST", `${LOGIN}/passkey`, passkeyOf(used, options.challenge, fields));
}

/* ---- doors --------------------------------------------------------------------------------- */

/* Try to get in; what is wrong is said below the form. */
async function enter(how) {
  say("");
  try {
    const answer = await how();
    if (!answer.ok) return say((await answer.json()).detail);
    code = "";
    return onIn();
  } catch (error) {
    // the browser's own words: nothing was chosen, or the service does not answer
    return say(error.message);
  }
}

/* With a login code: who it is for, and how they want to log in from now on. */
async function choose() {
  const answer = await call("POST", `${LOGIN}/code`, { code });
  const found = await answer.json();
  if (!answer.ok) {
    askAgain(found.detail);
    return;
  }
  onOut();
  creation = found.options;
  byId("choose-name").textContent = found.name;
  byId("new-name").value = found.name;
  byId("choose-passkey").hidden = !creation || !hasPasskeys(creation.rp.id);
  show("choose");
  say("");
}

function onSubmit(id, how) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    how();
  });
}

function taken(id) {
  const value = byId(id).value;
  byId(id).value = "";
  return value;
}

function listen() {
  onSubmit("password-form", () => {
    const body = { name: byId("name").value.trim(), password: taken("password") };
    enter(() => call("POST", `${LOGIN}/password`, body));
  });
  onSubmit("token-form", () => {
    sessionStorage.setItem(KEY, taken("token").trim());
    onIn();
  });
  onSubmit("choose", () => {
    const body = { code, password: taken("new-password") };
    enter(() => call("POST", `${LOGIN}/code/password`, body));
  });
  byId("passkey").addEventListener("click", () => enter(usePasskey));
  byId("choose-passkey").addEventListener("click", () => enter(makePasskey));
}

/* Let in whoever may be: with what is in the address, or with what this browser has. `enter` is
   called then, and `leave` before anybody else is asked who they are. */
export async function start(enter, leave) {
  onIn = enter;
  onOut = leave;
  listen();
  window.addEventListener("hashchange", open);
  await open();
}

async function open() {
  const given = new URLSearchParams(location.hash.slice(1));
  // the address bar, the history and a copied link must not hold a secret
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  code = given.get("code") || "";
  if (code) {
    sessionStorage.removeItem(KEY);
    await choose().catch((error) => askAgain(error.message));
    return;
  }
  if (given.get("token")) sessionStorage.setItem(KEY, given.get("token"));
  if (sessionStorage.getItem(KEY)) {
    onIn();
    return;
  }
  const me = await call("GET", "/api/v1/me").catch(() => null);
  if (me && me.ok) onIn();
  else askAgain("");
}
