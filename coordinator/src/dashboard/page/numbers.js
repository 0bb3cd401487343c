// Numbers as people read them. Everything of the page is one module, made of these small files in this order.

const NONE = "–";

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** With thousands separated by a thin space. */
function whole(value) {
  return isNumber(value) ? Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f") : NONE;
}

/** Four digits or so: 2.871, 0.0123, 1.20e-5, 12.4k. */
function short(value) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e4) return whole(value);
  if (size >= 1e15 || size < 1e-3) return value.toExponential(2);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= unit) return digits(value / (letter === "k" ? 1e3 : unit), 3) + letter;
  }
  return digits(value, 4);
}

function digits(value, count) {
  const before = Math.max(1, Math.floor(Math.log10(Math.abs(value))) + 1);
  return value.toFixed(Math.max(0, Math.min(6, count - before)));
}

/** A mark on an axis: no more digits than it needs. */
function tick(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-3) return value.toExponential(0).replace("+", "");
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return trimmed(value / unit) + letter;
  }
  return trimmed(value);
}

function trimmed(value) {
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  if (seconds < 90) return Math.round(seconds) + " s";
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return minutes + " min";
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A moment of Unix time: the time of day, with the date where it is another day. */
function moment(seconds) {
  if (!isNumber(seconds)) return NONE;
  const at = new Date(seconds * 1000);
  const time = at.toTimeString().slice(0, 8);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? time : `${String(at.getMonth() + 1).padStart(2, "0")}-${String(at.getDate()).padStart(2, "0")} ${time.slice(0, 5)}`;
}

function rate(value) {
  if (!isNumber(value)) return NONE;
  return value !== 0 && (value < 1e-2 || value >= 1e3) ? value.toExponential(2).replace("e-0", "e-") : digits(value, 4);
}
