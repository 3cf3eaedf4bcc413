// Brings an image in, and says how far it is.

const form = document.getElementById("upload");
const file = document.getElementById("image");
const progress = document.getElementById("progress");
const bar = document.getElementById("bar");
const said = document.getElementById("said");
const failed = document.getElementById("failed");
const stop = document.getElementById("stop");

function mib(bytes) {
  return `${(bytes / 1048576).toFixed(bytes < 104857600 ? 1 : 0)} MiB`;
}

function fail(text) {
  progress.hidden = stop.hidden = true;
  failed.textContent = text;
  failed.hidden = false;
}

if (form) {
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [image] = file.files;
    if (!image) return;
    const request = new XMLHttpRequest();
    let told = -1;
    request.open("PUT", `/api/v1/images/${encodeURIComponent(image.name)}`);
    request.setRequestHeader("content-type", "application/octet-stream");
    request.setRequestHeader("x-csrf-token", form.elements.csrf.value);
    request.upload.addEventListener("progress", ({ loaded, total }) => {
      const percent = total > 0 ? Math.floor((loaded / total) * 100) : 100;
      bar.value = percent;
      // A reader hears every tenth.
      if (Math.floor(percent / 10) !== told) {
        told = Math.floor(percent / 10);
        said.textContent = form.dataset.sent.replace("{}", mib(loaded)).replace("{}", mib(total));
      }
    });
    request.addEventListener("load", () => {
      if (request.status === 201) {
        location.reload();
        return;
      }
      let problem;
      try {
        problem = JSON.parse(request.responseText).detail;
      } catch {
        problem = `${request.status} ${request.statusText}`;
      }
      fail(problem);
    });
    request.addEventListener("error", () => fail(form.dataset.cut));
    request.addEventListener("abort", () => fail(form.dataset.cut));
    stop.onclick = () => request.abort();
    failed.hidden = true;
    progress.hidden = stop.hidden = false;
    request.send(image);
  });
}
