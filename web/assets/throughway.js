// What all pages have: parts that keep themselves current while somebody looks, a countdown, times of this place.

const language = document.documentElement.lang;
const own = navigator.languages.find((one) => one.slice(0, 2) === language.slice(0, 2));
const local = new Intl.DateTimeFormat(own ?? language, { dateStyle: "medium", timeStyle: "medium" });

/** Times of the server become times of this place. */
function times(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.valueOf())) time.textContent = local.format(at);
  }
}

/** Makes `old` as `now` is, in place: what has the focus keeps it, and an open dialog stays open. */
function morph(old, now) {
  if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName || old.id !== now.id) {
    old.replaceWith(now);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) if (!now.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  children(old, now);
}

function children(old, now) {
  const fresh = [...now.childNodes];
  const stale = [...old.childNodes];
  fresh.forEach((node, at) => (stale[at] ? morph(stale[at], node) : old.append(node)));
  stale.slice(fresh.length).forEach((node) => node.remove());
}

/** Asks for a part again; where that cannot be now, later. */
async function refresh(part) {
  part.again = part.busy || part.querySelector(":popover-open") !== null;
  if (part.again) return;
  part.busy = true;
  try {
    const answer = await fetch(part.dataset.live, { headers: { "x-live": "1" }, redirect: "error" });
    if (!answer.ok) return;
    const fresh = document.createElement(part.nodeName);
    const template = document.createElement("template");
    template.innerHTML = await answer.text();
    fresh.append(template.content);
    times(fresh);
    children(part, fresh);
    document.dispatchEvent(new CustomEvent("refreshed", { detail: part }));
  } catch {
    // The box does not answer now: what was known stays, and the next time comes.
  } finally {
    part.busy = false;
    if (part.again) refresh(part);
  }
}

const parts = [...document.querySelectorAll("[data-live]")];
let events;
let timers = [];

function look() {
  timers.forEach(clearInterval);
  timers = [];
  events?.close();
  events = undefined;
  if (document.visibilityState !== "visible") return;
  for (const part of parts) {
    const seconds = Number(part.dataset.every);
    if (seconds > 0) timers.push(setInterval(() => refresh(part), seconds * 1000));
  }
  const heard = parts.filter((part) => part.dataset.on);
  if (heard.length > 0) {
    events = new EventSource("/api/v1/events");
    // What happened since the page was made, or while the box could not be reached.
    events.addEventListener("open", () => heard.forEach(refresh));
    for (const name of new Set(heard.flatMap((part) => part.dataset.on.split(" ")))) {
      events.addEventListener(name, () => {
        heard.filter((part) => part.dataset.on.split(" ").includes(name)).forEach(refresh);
      });
    }
  }
}

/** What is left of a time that the server counts; at its end the part is asked for again. */
function countdown() {
  for (const timer of document.querySelectorAll("[data-until]")) {
    timer.skew ??= Number(timer.dataset.now) - Date.now() / 1000;
    const left = Math.max(0, Math.round(Number(timer.dataset.until) - Date.now() / 1000 - timer.skew));
    timer.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
    if (left === 0) {
      const part = timer.closest("[data-live]");
      if (part) refresh(part);
    }
  }
}

times(document);
document.addEventListener("toggle", () => parts.filter((part) => part.again).forEach(refresh), true);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") parts.forEach(refresh);
  look();
});
look();
setInterval(countdown, 1000);
