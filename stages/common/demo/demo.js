"use strict";

const part = (id) => document.getElementById(id);
const MAX_BYTES = Number(document.querySelector("main").dataset.maxBytes);

// What is shown or asked for: how to ask again, if another model is chosen.
let last = null;
let asking = null;

function fail(message) {
  part("error").textContent = message;
  part("status").textContent = "";
  part("result").hidden ||= part("result").classList.contains("old");
}

/** Label a photograph. An answer that is still awaited is forgotten: the last question wins. */
async function ask(name, query, body, label) {
  asking?.abort();
  const mine = (asking = new AbortController());
  last = () => ask(name, query, body, label);
  part("error").textContent = "";
  part("status").textContent = `Labelling ${name} …`;
  part("status").classList.remove("hidden");
  part("wait").hidden = false;
  part("result").classList.add("old");
  try {
    const address = `labels?model=${part("model").value}${query}`;
    const response = await fetch(address, { method: "POST", body, signal: mine.signal });
    const answer = await response.json().catch(() => ({ error: `the server answers ${response.status}` }));
    if (mine !== asking) return;
    if (response.ok) show(name, label, answer);
    else fail(`${name}: ${answer.error}`);
  } catch {
    // The server has ended, the file can't be read any more, or a later question has ended this one.
    if (mine === asking) fail(`${name}: it could not be sent. Does the server still run, and the file still exist?`);
  } finally {
    if (mine === asking) {
      asking = null;
      part("wait").hidden = true;
    }
  }
}

function send(file) {
  if (file.size > MAX_BYTES) {
    asking?.abort();
    asking = null;
    part("wait").hidden = true;
    part("result").hidden = true;
    last = null;
    fail(`${file.name}: ${(file.size / 1e6).toFixed(1)} MB; expected at most ${MAX_BYTES / 1e6} MB`);
  } else ask(file.name, "", file, null);
}

/** The first photograph among dropped or pasted files. */
function sendFirst(files, otherwise) {
  if (files.length) send(files[0]);
  else fail(otherwise);
}

function show(name, label, answer) {
  const best = answer.labels[0];
  part("status").textContent = `${name}: ${best.label}, probability ${best.probability.toFixed(2)}, by the model ${answer.model}.`;
  part("status").classList.add("hidden"); // for screen readers: the page shows it below
  part("best").textContent = best.label;
  part("name").textContent = label === null ? name : `${name}, true label ${label}`;
  part("photograph").src = answer.photograph;
  part("photograph").alt = `The photograph ${name}`;
  part("heat").hidden = answer.heat_map === null;
  if (answer.heat_map === null) part("heat-map").removeAttribute("src");
  else part("heat-map").src = answer.heat_map;
  part("heat-map").alt = answer.heat_map === null ? "" : `The photograph with a heat map of the evidence for ${best.label}`;
  part("why").textContent = answer.why_no_heat_map;
  part("note").textContent = answer.note ?? "";
  part("labels").replaceChildren(...answer.labels.map((each, place) => row(each, place === 0 ? answer.share_correct : null)));
  part("record").textContent = answer.record ?? "";
  part("result").hidden = false;
  part("result").classList.remove("old");
  part("result").scrollIntoView({ block: "nearest" });
}

function row({ label, probability }, share) {
  const line = document.createElement("tr");
  const [head, number, cell] = ["th", "td", "td"].map((name) => line.appendChild(document.createElement(name)));
  head.scope = "row";
  head.textContent = label;
  number.className = "number";
  number.textContent = probability.toFixed(3);
  const bar = cell.appendChild(document.createElement("span"));
  bar.className = "bar";
  bar.ariaHidden = "true";
  bar.appendChild(document.createElement("span")).style.width = `${100 * probability}%`;
  if (share !== null) bar.appendChild(document.createElement("i")).style.left = `${100 * share}%`;
  return line;
}

part("choose").addEventListener("click", () => part("file").click());
part("file").addEventListener("change", () => {
  if (part("file").files.length) send(part("file").files[0]);
  part("file").value = ""; // so that the same file can be chosen again
});
part("model").addEventListener("change", () => last?.());
for (const button of document.querySelectorAll(".example")) {
  const { number, image, label } = button.dataset;
  button.addEventListener("click", () => ask(image, `&example=${number}`, null, label));
}

// Anywhere on the page: beside the marked place the browser would leave the page and open the file.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  part("drop").classList.add("over");
});
document.addEventListener("dragleave", () => part("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  sendFirst(event.dataTransfer.files, "No file was dropped; save the photograph first, and drop the file.");
});
document.addEventListener("paste", (event) => sendFirst(event.clipboardData.files, "The clipboard has no photograph."));

// Browsers have a camera only for pages of this machine or with TLS.
let stream = null;
part("camera").hidden = !navigator.mediaDevices?.getUserMedia;

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  part("viewfinder").hidden = true;
}

part("camera").addEventListener("click", async () => {
  closeCamera();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    part("video").srcObject = stream;
    part("viewfinder").hidden = false;
    part("take").focus();
  } catch (error) {
    fail(`The camera can't be used: ${error.message}.`);
  }
});
part("take").addEventListener("click", () => {
  const video = part("video");
  if (!video.videoWidth) return; // the first picture has not come yet
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => send(new File([blob], "camera.jpg")), "image/jpeg", 0.95);
  closeCamera();
  part("camera").focus();
});
part("close").addEventListener("click", () => {
  closeCamera();
  part("camera").focus();
});
