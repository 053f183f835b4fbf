const element = (id) => document.getElementById(id);
const [text, status, record, tools, level] = ["text", "status", "record", "tools", "level"].map(element);
const MOST_KEPT = 1800; // s of a live signal that can be played again

let token = "";
let audio = null; // { rate, at(begin, end) -> Float32Array } of what the text was heard in
let words = []; // { button, start, end } of the text
let recording = null;
let context = null;
let playing = null;

function say(message, isError = false) {
  status.textContent = message;
  status.classList.toggle("error", isError);
}

function clear() {
  stopPlaying();
  text.replaceChildren();
  words = [];
  audio = null;
  tools.hidden = true;
}

function kindOf(confidence) {
  return confidence >= 0.9 ? "sure" : confidence >= 0.6 ? "unsure" : "doubtful";
}

function show(newWords, whole) {
  text.querySelector(".partial")?.remove();
  text.querySelector(".hint")?.remove();
  if (!newWords.length && whole) text.append(document.createTextNode(`${whole} `));
  for (const word of newWords) {
    const button = document.createElement("button");
    button.className = `word ${kindOf(word.confidence)}`;
    button.textContent = word.text;
    button.title = `${word.start.toFixed(2)} to ${word.end.toFixed(2)} s, ${Math.round(100 * word.confidence)} % sure`;
    button.addEventListener("click", () => play(word.start - 0.05, word.end + 0.05));
    text.append(button, document.createTextNode(" "));
    words.push({ button, start: word.start, end: word.end });
  }
  tools.hidden = !text.textContent.trim();
}

function showPartial(message) {
  text.querySelector(".partial")?.remove();
  const partial = document.createElement("span");
  partial.className = "partial";
  partial.textContent = message.text;
  text.append(partial);
}

// Playing ---------------------------------------------------------------------------------------------------------

function sound() {
  context ??= new AudioContext();
  context.resume();
  return context;
}

function stopPlaying() {
  if (!playing) return;
  playing.source.onended = null;
  playing.source.stop();
  cancelAnimationFrame(playing.frame);
  for (const word of words) word.button.classList.remove("playing");
  element("play").textContent = "Play";
  playing = null;
}

function play(begin, end) {
  stopPlaying();
  if (!audio) return;
  begin = Math.max(0, begin);
  const samples = audio.at(begin, end);
  if (!samples.length) return;
  const device = sound();
  const buffer = device.createBuffer(1, samples.length, audio.rate);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(device, { buffer });
  source.connect(device.destination);
  source.onended = stopPlaying;
  source.start();
  const since = device.currentTime;
  playing = { source, frame: 0 };
  element("play").textContent = "Stop";
  const follow = () => {
    const at = begin + device.currentTime - since;
    for (const word of words) word.button.classList.toggle("playing", at >= word.start && at < word.end);
    if (playing) playing.frame = requestAnimationFrame(follow);
  };
  follow();
}

element("play").addEventListener("click", () => (playing ? stopPlaying() : play(0, Infinity)));
element("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(text.textContent.trim().replace(/\s+/g, " "));
    say("Copied.");
  } catch {
    say("The browser does not let this page copy; mark the text instead.", true);
  }
});

// Recordings ------------------------------------------------------------------------------------------------------

function asked(path) {
  const model = element("model").value;
  return model ? `${path}?model=${encodeURIComponent(model)}` : path;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
  const said = await answer.json();
  if (answer.ok) return said;
  if (answer.status === 401) askForToken();
  throw Object.assign(new Error(said.error), { status: answer.status });
}

async function decoded(content) {
  const buffer = await sound().decodeAudioData(content);
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    buffer.getChannelData(channel).forEach((value, at) => (mono[at] += value / buffer.numberOfChannels));
  }
  return { rate: buffer.sampleRate, mono, at: (begin, end) => mono.subarray(begin * buffer.sampleRate, Math.min(mono.length, end * buffer.sampleRate)) };
}

function wav({ rate, mono }) {
  const view = new DataView(new ArrayBuffer(44 + 2 * mono.length));
  const ascii = (at, word) => [...word].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  ascii(0, "RIFF"); ascii(8, "WAVEfmt "); ascii(36, "data");
  view.setUint32(4, 36 + 2 * mono.length, true);
  view.setUint32(16, 16, true);
  [1, 1].forEach((value, index) => view.setUint16(20 + 2 * index, value, true)); // PCM of one channel
  [rate, 2 * rate].forEach((value, index) => view.setUint32(24 + 4 * index, value, true));
  [2, 16].forEach((value, index) => view.setUint16(32 + 2 * index, value, true));
  view.setUint32(40, 2 * mono.length, true);
  mono.forEach((value, at) => view.setInt16(44 + 2 * at, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new File([view], "decoded.wav", { type: "audio/wav" });
}

async function transcribe(file) {
  const form = new FormData();
  form.append("words", "true");
  form.append("file", file);
  return ask(asked("/transcribe"), { method: "POST", body: form });
}

async function hear(file) {
  if (recording) return;
  clear();
  say(`${file.name}: listening …`);
  const heard = await file.arrayBuffer().then(decoded).catch(() => null); // without it, words are not played
  let answer;
  try {
    answer = await transcribe(file);
  } catch (error) {
    if (error.status !== 400 || !heard) throw error;
    answer = await transcribe(wav(heard)); // of a kind that browsers read, and the server does not
  }
  audio = heard;
  show(answer.words, answer.text);
  say(`${file.name}: ${answer.seconds.toFixed(1)} s, transcribed in ${answer.latency.toFixed(2)} s${answer.text ? "" : "; no words were heard"}`);
}

const told = (work) => work.catch((error) => say(error.message, true));
element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) told(hear(target.files[0]));
  target.value = "";
});
element("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") element("file").click();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) told(hear(event.dataTransfer.files[0]));
  });
}

// The microphone --------------------------------------------------------------------------------------------------

class Recording {
  async begin() {
    const unchanged = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.tracks = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...unchanged } });
    this.device = new AudioContext();
    this.blocks = [];
    this.samples = 0;
    await this.device.audioWorklet.addModule("/static/recorder.js");
    this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/stream`);
    this.socket.addEventListener("message", ({ data }) => this.receive(JSON.parse(data)));
    this.socket.addEventListener("close", () => this.close());
    await new Promise((resolve, reject) => {
      this.socket.addEventListener("open", resolve);
      this.socket.addEventListener("error", () => reject(new Error("The server opens no stream; it may be busy.")));
    });
    const start = { rate: this.device.sampleRate, encoding: "float32" };
    if (element("model").value) start.model = element("model").value;
    if (token) start.token = token;
    this.socket.send(JSON.stringify(start));
    this.node = new AudioWorkletNode(this.device, "recorder");
    this.node.port.onmessage = ({ data }) => (data ? this.send(data) : this.socket.send('{"type": "end"}'));
    this.device.createMediaStreamSource(this.tracks).connect(this.node);
    const rate = this.device.sampleRate;
    audio = { rate, at: (begin, end) => this.part(Math.round(begin * rate), Math.round(Math.min(end * rate, this.samples))) };
  }

  send(block) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    this.socket.send(block);
    level.value = Math.sqrt(block.reduce((sum, value) => sum + value * value, 0) / block.length) ** 0.5;
    if (this.samples < MOST_KEPT * this.device.sampleRate) this.blocks.push(Int16Array.from(block, (value) => 32767 * Math.max(-1, Math.min(1, value))));
    this.samples += block.length;
  }

  part(begin, end) {
    const found = [];
    let at = 0;
    for (const block of this.blocks) {
      if (at + block.length > begin && at < end) found.push(...block.subarray(Math.max(0, begin - at), end - at));
      at += block.length;
    }
    return Float32Array.from(found, (value) => value / 32767);
  }

  receive(message) {
    if (message.type === "ready") say(`Listening with ${message.model} …`);
    if (message.type === "partial") showPartial(message);
    if (message.type === "final") {
      text.querySelector(".partial")?.remove();
      if (message.continues && text.lastChild?.nodeType === Node.TEXT_NODE) text.lastChild.remove();
      show(message.words, message.text);
    }
    if (message.type === "done") this.done = message;
    if (message.type === "error") {
      this.failed = true;
      if (message.status === 401) askForToken();
      say(message.error, true);
    }
  }

  end() {
    record.disabled = true;
    this.node?.port.postMessage("end");
    if (!this.node) this.close();
  }

  close() {
    for (const track of this.tracks?.getTracks() ?? []) track.stop();
    this.device?.close();
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.close();
    if (this.done) say(`${this.done.seconds.toFixed(1)} s${this.done.text ? "" : "; no words were heard"}`);
    else if (!this.failed) say("The connection has ended.", true);
    text.querySelector(".partial")?.remove();
    recording = null;
    record.disabled = false;
    level.hidden = true;
    document.body.classList.remove("recording");
    element("record-text").textContent = "Record";
  }
}

record.addEventListener("click", async () => {
  if (recording) {
    recording.end();
    return;
  }
  clear();
  recording = new Recording();
  document.body.classList.add("recording");
  element("record-text").textContent = "Stop";
  level.hidden = false;
  try {
    await recording.begin();
  } catch (error) {
    if (recording) Object.assign(recording, { failed: true }).close();
    say(error.name === "NotAllowedError" ? "The browser does not let this page hear the microphone." : error.message, true);
  }
});

// The server ------------------------------------------------------------------------------------------------------

function askForToken() {
  element("token-form").hidden = false;
  element("token").focus();
}

element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value.trim();
  element("token-form").hidden = true;
  say("");
});

if (!navigator.mediaDevices || !window.AudioWorkletNode) {
  record.disabled = true;
  say("Browsers give a page the microphone only over HTTPS, or from this machine itself.");
}
told(
  ask("/health").then(({ models }) => {
    element("model").replaceChildren(...models.map((name) => new Option(name, name)));
    element("model-field").hidden = models.length < 2;
  }),
);
