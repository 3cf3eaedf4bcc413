// A guest's console: shows the screen that the server keeps, and sends what is typed.

const screen = document.getElementById("screen");

const keys = {
  Enter: "\r", Escape: "\x1b", Tab: "\t", Backspace: "\x7f",
  PageUp: "\x1b[5~", PageDown: "\x1b[6~", Insert: "\x1b[2~", Delete: "\x1b[3~",
  F1: "\x1bOP", F2: "\x1bOQ", F3: "\x1bOR", F4: "\x1bOS", F5: "\x1b[15~", F6: "\x1b[17~",
  F7: "\x1b[18~", F8: "\x1b[19~", F9: "\x1b[20~", F10: "\x1b[21~", F11: "\x1b[23~", F12: "\x1b[24~",
};
const arrows = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D", Home: "H", End: "F" };

if (screen) {
  const url = `/guests/${screen.dataset.guest}/console`;
  const said = document.getElementById("said");
  const state = document.getElementById("state");
  const types = screen.dataset.types === "true";
  let version = screen.dataset.version;
  let mode = "[";
  let bracketed = false;
  let waiting = "";
  let sending = false;
  let settle;

  const tell = (text) => {
    state.textContent = text;
    state.hidden = text === "";
  };

  /** Rows that differ are replaced; the last of them is said to who cannot see it, once it stays. */
  const show = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    let last = "";
    [...template.content.children].forEach((row, at) => {
      const old = screen.children[at];
      if (old?.innerHTML === row.innerHTML) return;
      if (row.textContent.trim() !== "") last = row.textContent.trim();
      if (old) old.replaceWith(row);
      else screen.append(row);
    });
    clearTimeout(settle);
    if (last !== "") settle = setTimeout(() => (said.textContent = last), 600);
  };

  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const seen = () =>
    new Promise((done) => {
      if (document.visibilityState === "visible") done();
      else document.addEventListener("visibilitychange", () => done(), { once: true });
    });

  const watch = async () => {
    for (;;) {
      await seen();
      try {
        const answer = await fetch(`${url}/screen?seen=${version}`, { redirect: "error" });
        if (answer.status === 410 || answer.status === 404 || answer.status === 409) {
          tell(screen.dataset.ended);
          await pause(3000);
          version = 0;
          continue;
        }
        if (!answer.ok) throw new Error(answer.status);
        version = answer.headers.get("x-version");
        mode = answer.headers.get("x-arrows");
        bracketed = answer.headers.get("x-paste") === "1";
        show(await answer.text());
        tell("");
      } catch {
        tell(screen.dataset.lost);
        await pause(2000);
      }
    }
  };

  /** One request after the other, so that letters come in their order. */
  const send = async (text) => {
    waiting += text;
    if (sending) return;
    sending = true;
    while (waiting !== "") {
      const now = waiting.slice(0, 16384);
      waiting = waiting.slice(now.length);
      try {
        const answer = await fetch(`${url}/keys`, {
          method: "POST",
          headers: { "content-type": "application/octet-stream", "x-csrf-token": screen.dataset.csrf },
          body: new TextEncoder().encode(now),
        });
        if (!answer.ok) {
          waiting = "";
          tell((await answer.json()).detail);
        }
      } catch {
        waiting = "";
        tell(screen.dataset.lost);
      }
    }
    sending = false;
  };

  const bytes = (event) => {
    if (event.key in arrows) return `\x1b${mode}${arrows[event.key]}`;
    if (event.key === "Tab" && event.shiftKey) return "\x1b[Z";
    if (event.key in keys) return (event.altKey ? "\x1b" : "") + keys[event.key];
    if (event.key.length !== 1) return undefined;
    if (event.ctrlKey && !event.altKey) {
      const code = event.key.toUpperCase().charCodeAt(0);
      if (event.key === " ") return "\0";
      return code >= 64 && code < 96 ? String.fromCharCode(code - 64) : undefined;
    }
    return (event.altKey && !event.ctrlKey ? "\x1b" : "") + event.key;
  };

  if (types) {
    screen.addEventListener("keydown", (event) => {
      if (event.isComposing || event.metaKey) return;
      if (event.ctrlKey && event.shiftKey) {
        // Copying and pasting are the browser's; Escape leaves.
        if (event.key === "Escape") document.getElementById("line").focus();
        return;
      }
      const text = bytes(event);
      if (text === undefined) return;
      event.preventDefault();
      send(text);
    });
    document.addEventListener("paste", (event) => {
      if (document.activeElement !== screen) return;
      event.preventDefault();
      const text = event.clipboardData.getData("text").replace(/\r?\n/g, "\r");
      send(bracketed ? `\x1b[200~${text}\x1b[201~` : text);
    });
    screen.focus();
  }
  watch();
}
