// A log that goes on while somebody looks at it.

const log = document.querySelector("[data-follow]");
/** Lines that are shown: older ones go. */
const most = 5000;
let shown = [];
let source;

function add({ lines, missed }) {
  const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const text = (missed ? "\u2026\n" : "") + lines.map((line) => `${line}\n`).join("");
  if (text !== "") {
    log.append(text);
    shown.push(lines.length);
  }
  while (shown.length > 1 && shown.reduce((all, one) => all + one) > most) {
    log.firstChild.remove();
    shown.shift();
  }
  // Who reads further up stays there.
  if (low) log.scrollTop = log.scrollHeight;
}

function follow() {
  source?.close();
  source = undefined;
  if (document.visibilityState !== "visible") return;
  // A new one is told the last lines again; one that only lost its connection goes on where it was.
  let begun = false;
  source = new EventSource(log.dataset.follow);
  source.addEventListener("lines", (event) => {
    const news = JSON.parse(event.data);
    if (!begun && news.lines.length > 0) {
      log.replaceChildren();
      shown = [];
    }
    begun ||= news.lines.length > 0;
    add(news);
  });
}

if (log) {
  log.scrollTop = log.scrollHeight;
  document.addEventListener("visibilitychange", follow);
  follow();
}
