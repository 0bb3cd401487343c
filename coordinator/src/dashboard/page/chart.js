// One chart on a canvas: lines with the span of what was merged, steps, dots or stacked areas; a read-out, a zoom by
// dragging and by keys. It holds no data: it is given what to draw, and tells what the reader points at.

const darkness = matchMedia("(prefers-color-scheme: dark)");

// Told apart by people who do not see red and green (Okabe and Ito; Tol's muted ones for phases).
const COLOURS = {
  light: ["#0072b2", "#d55e00", "#00805c", "#a24d86", "#5a6470"],
  dark: ["#62aef0", "#f0a04b", "#3cc79a", "#dd92bd", "#97a2ad"],
};
const PHASE_COLOURS = [
  "#5b6fb5", "#88ccee", "#44aa99", "#999933", "#ddcc77", "#cc6677", "#aa6699", "#7d8b99", "#b8a07e", "#6aa5c4", "#c79fb8", "#8fbf8f",
];

function colour(index) {
  return COLOURS[darkness.matches ? "dark" : "light"][index];
}

/** The same colour for a phase wherever it is shown. */
const phaseOrder = [];
function phaseColour(name) {
  if (!phaseOrder.includes(name)) phaseOrder.push(name);
  return PHASE_COLOURS[phaseOrder.indexOf(name) % PHASE_COLOURS.length];
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const LEFT = 48;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 20;

class Chart {
  /**
   * `spec`: title, unit, size ("large", "wide" or none), kind ("lines" or "area" or "blocks"), `series(columns)` gives what to
   * draw, `format` a read-out. `view` is shared by all charts: axis, range, cursor, and what to do when they change.
   */
  constructor(spec, view) {
    this.spec = spec;
    this.view = view;
    this.legend = element("span", { class: "legend" });
    const title = element("b", { text: spec.title });
    const unit = element("span", { class: "unit", text: spec.unit ?? "" });
    const caption = element("figcaption", {}, title, unit, this.legend);
    this.canvas = element("canvas");
    this.plot = element("div", { class: "plot", tabindex: "0", role: "img", "aria-label": spec.title }, this.canvas);
    this.figure = element("figure", { class: spec.size ?? "" }, caption, this.plot);
    this.shown = "";
    new ResizeObserver(() => this.draw()).observe(this.plot);
    this.listen();
  }

  show(columns) {
    this.columns = columns;
    this.series = columns.rows ? this.spec.series(columns).filter((series) => series.values?.some(isNumber)) : [];
    this.figure.hidden = this.series.length === 0;
    this.draw();
  }

  /** Rows from the first to before the last that are in view. */
  span() {
    const { range } = this.view;
    if (!range) return [0, this.columns.rows];
    const begin = this.columns.rowOf(range[0]);
    return [begin, Math.max(begin + 1, Math.min(this.columns.rowOf(range[1]) + 1, this.columns.rows))];
  }

  draw() {
    if (!this.columns || this.figure.hidden) return;
    const box = this.plot.getBoundingClientRect();
    if (box.width < 10) return;
    const scale = devicePixelRatio || 1;
    this.canvas.width = Math.round(box.width * scale);
    this.canvas.height = Math.round(box.height * scale);
    const ink = this.canvas.getContext("2d");
    ink.scale(scale, scale);
    const style = getComputedStyle(this.plot);
    const tone = (name) => style.getPropertyValue(name).trim();
    const frame = { left: LEFT, top: TOP, right: box.width - RIGHT, bottom: box.height - BOTTOM, ink, tone };
    this.frame = frame;
    [this.begin, this.end] = this.span();
    const xs = this.columns[this.view.axis];
    this.domain = [this.begin > 0 ? xs[this.begin - 1] : 0, xs[this.end - 1]];
    if (this.domain[1] <= this.domain[0]) this.domain[0] = this.domain[1] - 1;
    this.x = (value) => LEFT + ((value - this.domain[0]) / (this.domain[1] - this.domain[0])) * (frame.right - LEFT);
    this.drawFrame(frame);
    ink.save();
    ink.beginPath();
    ink.rect(LEFT, TOP - 2, frame.right - LEFT + 2, frame.bottom - TOP + 4);
    ink.clip();
    if (this.spec.kind === "area") this.drawAreas(frame);
    else if (this.spec.kind === "blocks") this.drawBlocks(frame);
    else this.drawLines(frame);
    ink.restore();
    this.drawCursor(frame);
    this.readOut();
  }

  drawFrame({ ink, tone, left, right, top, bottom }) {
    ink.font = `11px ${getComputedStyle(this.plot).fontFamily}`;
    ink.lineWidth = 1;
    if (this.spec.kind !== "blocks") {
      const [least, most, isLog] = this.limits();
      const place = isLog
        ? (value) => bottom - ((Math.log(value) - Math.log(least)) / (Math.log(most) - Math.log(least))) * (bottom - top)
        : (value) => bottom - ((value - least) / (most - least)) * (bottom - top);
      this.y = (value) => (isLog && value <= 0 ? bottom + 4 : place(value));
      ink.textAlign = "right";
      ink.textBaseline = "middle";
      for (const value of isLog ? logTicks(least, most) : ticks(least, most, Math.max(2, (bottom - top) / 42))) {
        const y = Math.round(this.y(value)) + 0.5;
        ink.strokeStyle = tone("--grid");
        line(ink, left, y, right, y);
        ink.fillStyle = tone("--soft");
        ink.fillText(tick(value), left - 7, y);
      }
    }
    ink.textBaseline = "top";
    ink.fillStyle = tone("--soft");
    const marks = ticks(this.domain[0], this.domain[1], Math.max(2, (right - left) / 90))
      // There is no half a step.
      .filter((value) => this.view.axis === "hours" || Number.isInteger(value));
    for (const value of marks) {
      const x = this.x(value);
      ink.textAlign = x > right - 20 ? "right" : x < left + 14 ? "left" : "center";
      ink.fillText(this.view.axis === "hours" ? duration(value * 3600) : tick(value), Math.min(x, right), bottom + 6);
    }
    ink.strokeStyle = tone("--line");
    line(ink, left, bottom + 0.5, right, bottom + 0.5);
  }

  /** The smallest and the largest value in view with some room, and whether the scale is logarithmic. */
  limits() {
    let [least, most] = [Infinity, -Infinity];
    const wantsLog = this.spec.isLog?.(this.view) ?? false;
    const take = (value) => {
      if (!isNumber(value) || (wantsLog && value <= 0)) return;
      least = Math.min(least, value);
      most = Math.max(most, value);
    };
    if (this.spec.kind === "area") {
      for (let row = this.begin; row < this.end; row += 1) {
        take(this.series.reduce((sum, series) => sum + (series.values[row] ?? 0), 0));
      }
      least = 0;
    }
    for (const series of this.spec.kind === "area" ? [] : this.series) {
      if (series.points) {
        series.points.filter(([step]) => this.isInView(step)).forEach(([, value]) => take(value));
        continue;
      }
      for (let row = this.begin; row < this.end; row += 1) {
        take(series.values[row]);
        if (series.least) [series.least[row], series.most[row]].forEach(take);
      }
    }
    if (!isNumber(least)) [least, most] = [0, 1];
    const isLog = wantsLog && least > 0;
    if (isLog) return least === most ? [least / 2, most * 2, true] : [least / 1.06, most * 1.06, true];
    if (this.spec.fromZero && least > 0) least = 0;
    const room = (most - least || Math.abs(most) || 1) * 0.07;
    return [least === 0 ? 0 : least - room, most + room, false];
  }

  isInView(step) {
    return this.columns.rows > 0 && step >= (this.begin ? this.columns.step[this.begin - 1] : 0) && step <= this.columns.step[this.end - 1];
  }

  drawLines({ ink, tone, top, bottom }) {
    const xs = this.columns[this.view.axis];
    const from = Math.max(0, this.begin - 1);
    for (const left of this.spec.showsLeft ? this.columns.left : []) {
      const x = this.x(this.columns.at(left.to, this.view.axis));
      ink.strokeStyle = tone("--soft");
      ink.setLineDash([3, 4]);
      line(ink, x, top, x, bottom);
      ink.globalAlpha = 0.7;
      this.path(left.step.map((step, at) => [this.columns.at(step, this.view.axis), left.loss[at]]));
      ink.globalAlpha = 1;
      ink.setLineDash([]);
    }
    for (const series of this.series) {
      if (!series.least) continue;
      ink.fillStyle = colour(series.colour);
      ink.globalAlpha = 0.2;
      this.band(series, xs, from);
      ink.globalAlpha = 1;
    }
    for (const series of this.series) {
      ink.strokeStyle = ink.fillStyle = colour(series.colour);
      ink.lineWidth = series.points ? 1.2 : 1.6;
      ink.lineJoin = "round";
      ink.setLineDash(series.dashes ?? []);
      const points = series.points
        ? series.points.map(([step, value]) => [this.columns.at(step, this.view.axis), value])
        : Array.from({ length: this.end - from }, (_, at) => [xs[from + at], series.values[from + at]]);
      this.path(points, series.steps);
      ink.setLineDash([]);
      if (series.points && points.length <= 120) {
        for (const [x, value] of points) dot(ink, this.x(x), this.y(value), 2.6);
      }
      const numbers = points.filter(([, value]) => isNumber(value));
      if (numbers.length === 1) dot(ink, this.x(numbers[0][0]), this.y(numbers[0][1]), 2.6);
    }
  }

  path(points, isStepped = false) {
    const { ink } = this.frame;
    ink.beginPath();
    let before = null;
    for (const [x, value] of points) {
      if (!isNumber(value)) {
        before = null;
        continue;
      }
      const [px, py] = [this.x(x), this.y(value)];
      if (before === null) ink.moveTo(px, py);
      else if (isStepped) ink.lineTo(px, before), ink.lineTo(px, py);
      else ink.lineTo(px, py);
      before = py;
    }
    ink.stroke();
  }

  band(series, xs, from) {
    const { ink } = this.frame;
    ink.beginPath();
    const rows = [];
    for (let row = from; row < this.end; row += 1) if (isNumber(series.least[row])) rows.push(row);
    rows.forEach((row) => ink.lineTo(this.x(xs[row]), this.y(series.most[row])));
    rows.reverse().forEach((row) => ink.lineTo(this.x(xs[row]), this.y(series.least[row])));
    ink.fill();
  }

  drawAreas({ ink }) {
    const xs = this.columns[this.view.axis];
    const from = Math.max(0, this.begin - 1);
    const sums = Array(this.end - from).fill(0);
    for (const series of this.series) {
      const below = sums.slice();
      ink.beginPath();
      for (let row = from; row < this.end; row += 1) {
        sums[row - from] += series.values[row] ?? 0;
        ink.lineTo(this.x(xs[row]), this.y(sums[row - from]));
      }
      for (let row = this.end - 1; row >= from; row -= 1) ink.lineTo(this.x(xs[row]), this.y(below[row - from]));
      ink.closePath();
      ink.fillStyle = phaseColour(series.name);
      ink.fill();
    }
  }

  /** Neighbouring rows of one generation as a block with its number and its ranks. */
  drawBlocks({ ink, tone, top, bottom }) {
    const { generation, ranks } = this.columns;
    const xs = this.columns[this.view.axis];
    const most = Math.max(...ranks.slice(this.begin, this.end));
    for (let row = this.begin; row < this.end; ) {
      let next = row;
      while (next < this.end && generation[next] === generation[row]) next += 1;
      const left = this.x(row > 0 ? xs[row - 1] : 0);
      const width = Math.max(this.x(xs[next - 1]) - left, 1.5);
      const height = (bottom - top) * Math.max(ranks[row] / most, 0.2);
      ink.fillStyle = colour(0);
      ink.globalAlpha = 0.28 + 0.3 * (generation[row] % 2);
      ink.fillRect(left, bottom - height, Math.max(width - 1, 1), height);
      ink.globalAlpha = 1;
      ink.fillStyle = tone("--ink");
      ink.textAlign = "left";
      ink.textBaseline = "middle";
      const word = `generation ${generation[row]} · ${ranks[row]} rank${ranks[row] === 1 ? "" : "s"}`;
      if (width > ink.measureText(word).width + 14) ink.fillText(word, Math.max(left, LEFT) + 7, bottom - height / 2);
      row = next;
    }
    for (const left of this.columns.left) {
      const x = this.x(this.columns.at(left.to, this.view.axis));
      ink.fillStyle = colour(1);
      ink.beginPath();
      ink.moveTo(x - 5, top - 2);
      ink.lineTo(x + 5, top - 2);
      ink.lineTo(x, top + 7);
      ink.fill();
    }
  }

  drawCursor({ ink, tone, top, bottom, right }) {
    const { cursor, drag } = this.view;
    if (drag?.chart === this) {
      const [a, b] = [drag.from, drag.to].map((x) => Math.max(LEFT, Math.min(x, right)));
      ink.fillStyle = tone("--shade");
      ink.fillRect(Math.min(a, b), top, Math.abs(b - a), bottom - top);
    }
    if (cursor === null) return;
    const row = this.rowAtCursor();
    const x = Math.round(this.x(this.columns[this.view.axis][row])) + 0.5;
    if (x < LEFT || x > right + 1) return;
    ink.strokeStyle = tone("--soft");
    ink.lineWidth = 1;
    line(ink, x, top, x, bottom);
    if (this.spec.kind) return;
    for (const series of this.series) {
      const value = series.points ? null : series.values[row];
      if (!isNumber(value)) continue;
      ink.fillStyle = colour(series.colour);
      dot(ink, x, this.y(value), 3);
    }
  }

  rowAtCursor() {
    return Math.max(this.begin, Math.min(this.columns.rowOf(this.view.cursor), this.end - 1));
  }

  /** The values at the cursor, else the newest, in the legend and for those who listen. */
  readOut() {
    const isPointed = this.view.cursor !== null;
    const row = isPointed ? this.rowAtCursor() : this.end - 1;
    const format = this.spec.format ?? short;
    let values = this.spec.kind === "blocks" ? [] : this.series.map((series) => [series.name, this.valueOf(series, row), series]);
    // Phases come and go with the world; those that this step does not have are left out.
    if (this.spec.kind === "area") values = values.filter(([, value]) => isNumber(value));
    const words = values.map(([name, value]) => `${name} ${format(value)}`);
    const text = words.join("|") + darkness.matches;
    this.plot.setAttribute("aria-label", `${this.spec.title}, step ${this.columns.step[row]}: ${words.join(", ")}`);
    if (text === this.shown) return;
    this.shown = text;
    this.legend.replaceChildren(
      ...values.map(([name, value, series]) => {
        const sign = element("i");
        sign.style.background = this.spec.kind === "area" ? phaseColour(name) : colour(series.colour);
        const label = values.length > 1 || this.spec.kind === "area" ? `${name} ` : "";
        return element("span", {}, sign, label, element("output", { text: format(value) }));
      }),
    );
  }

  valueOf(series, row) {
    if (!series.points) return series.values[row];
    return series.points.findLast(([step]) => step <= this.columns.step[row])?.[1];
  }

  listen() {
    const xOf = (event) => event.clientX - this.plot.getBoundingClientRect().left;
    const stepAt = (x) => {
      const share = (x - LEFT) / (this.frame.right - LEFT);
      const value = this.domain[0] + Math.max(0, Math.min(share, 1)) * (this.domain[1] - this.domain[0]);
      const xs = this.columns[this.view.axis];
      let [low, high] = [this.begin, this.end - 1];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (xs[middle] < value) low = middle + 1;
        else high = middle;
      }
      return this.columns.step[low];
    };
    this.plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.frame) return;
      this.view.drag = { chart: this, from: xOf(event), to: xOf(event) };
      this.plot.setPointerCapture(event.pointerId);
    });
    this.plot.addEventListener("pointermove", (event) => {
      if (!this.frame) return;
      if (this.view.drag) this.view.drag.to = xOf(event);
      this.view.point(stepAt(xOf(event)));
    });
    this.plot.addEventListener("pointerup", () => {
      const { drag } = this.view;
      this.view.drag = null;
      if (drag && Math.abs(drag.to - drag.from) > 6) {
        this.view.zoom([stepAt(Math.min(drag.from, drag.to)), stepAt(Math.max(drag.from, drag.to))]);
      } else this.draw();
    });
    this.plot.addEventListener("pointercancel", () => (this.view.drag = null));
    this.plot.addEventListener("pointerleave", () => this.view.drag || this.view.point(null));
    this.plot.addEventListener("blur", () => this.view.point(null));
    this.plot.addEventListener("dblclick", () => this.view.zoom(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (!this.frame || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = this.view.cursor === null ? this.end - 1 : this.rowAtCursor();
    const go = (to) => this.view.point(this.columns.step[Math.max(this.begin, Math.min(to, this.end - 1))]);
    const stride = event.shiftKey ? Math.max(1, Math.round((this.end - this.begin) / 20)) : 1;
    const zoom = (factor) => {
      const steps = this.columns.step;
      const middle = steps[row];
      const half = ((steps[this.end - 1] - steps[this.begin]) / 2) * factor;
      const [first, last] = [Math.max(steps[0], Math.round(middle - half)), Math.round(middle + half)];
      this.view.zoom(factor > 1 && half * 2 >= this.columns.last ? null : [first, Math.max(last, first + 2)]);
    };
    const keys = {
      ArrowLeft: () => go(row - stride), ArrowRight: () => go(row + stride), Home: () => go(this.begin), End: () => go(this.end - 1),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), Escape: () => this.view.zoom(null), 0: () => this.view.zoom(null),
    };
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

function line(ink, x1, y1, x2, y2) {
  ink.beginPath();
  ink.moveTo(x1, y1);
  ink.lineTo(x2, y2);
  ink.stroke();
}

function dot(ink, x, y, radius) {
  ink.beginPath();
  ink.arc(x, y, radius, 0, 7);
  ink.fill();
}

/** Round values between two others, about so many. */
function ticks(least, most, count) {
  const rough = (most - least) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= rough) ?? power * 10;
  const values = [];
  for (let value = Math.ceil(least / step) * step; value <= most + step * 1e-9; value += step) {
    values.push(Math.abs(value) < step * 1e-9 ? 0 : Number(value.toPrecision(12)));
  }
  return values;
}

function logTicks(least, most) {
  const values = [];
  const digits = most / least > 200 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power += 1) {
    for (const digit of digits) values.push(Number((digit * 10 ** power).toPrecision(3)));
  }
  const inside = values.filter((value) => value >= least && value <= most);
  return inside.length >= 2 ? inside : ticks(least, most, 4);
}
