// Which charts there are, and what each draws. A number that a run does not have makes no chart and no line.

function column(columns, name, label, index, more = {}) {
  const series = columns.columns[name];
  return { name: label, values: series?.mean, least: series?.least, most: series?.most, colour: index, ...more };
}

const CHARTS = [
  {
    title: "Loss", unit: "nats a token", size: "large", showsLeft: true,
    isLog: (view) => view.logLoss,
    series: (columns) => [
      column(columns, "loss", "training", 0),
      { name: "validation", values: columns.validations.map(([, loss]) => loss), points: columns.validations, colour: 1 },
    ],
  },
  {
    title: "Learning rate", fromZero: true, format: rate,
    series: (columns) => [
      // Below the planned one, which hides it where they are equal.
      column(columns, "effective_lr", "effective", 1),
      column(columns, "lr", "planned", 0),
    ],
  },
  {
    title: "Throughput", unit: "tokens a second", fromZero: true,
    series: (columns) => [column(columns, "tokens_per_second", "tokens a second", 0)],
  },
  {
    title: "Batch", unit: "samples", fromZero: true,
    series: (columns) => [
      column(columns, "batch", "batch", 0, { steps: true }),
      column(columns, "noise_scale", "noise scale", 1),
    ],
  },
  {
    title: "Norms", isLog: () => true,
    series: (columns) => [column(columns, "grad_norm", "gradient", 0), column(columns, "update_norm", "update", 1)],
  },
  {
    title: "Step", unit: "ms by phase, rank 0", kind: "area", format: (ms) => (isNumber(ms) ? ms.toFixed(ms < 9.95 ? 1 : 0) : NONE),
    // What is hidden behind computation takes no time of its own.
    series: (columns) =>
      columns.phases
        .filter(([name]) => !name.startsWith("hidden_"))
        .map(([name, series]) => ({ name, values: series.mean })),
  },
  {
    title: "Model of the loss", unit: "nats a token",
    series: (columns) => [column(columns, "model_value", "model", 0), column(columns, "lower_bound", "lower bound", 1)],
  },
  {
    title: "Dual norm of the momentum", isLog: () => true,
    series: (columns) => [column(columns, "dual_norm", "dual norm", 0)],
  },
  {
    title: "Orthogonality error", unit: "of one matrix a step", isLog: () => true,
    series: (columns) => [column(columns, "orthogonality_error", "error", 0)],
  },
  {
    title: "Generations", unit: "height: ranks; ▾ a rewind", kind: "blocks", size: "wide",
    series: (columns) => [{ name: "ranks", values: columns.ranks }],
  },
];

/** All charts, which share one axis, one range and one cursor. */
class Charts {
  constructor(grid, fetchDetail) {
    this.view = {
      axis: "step", range: null, cursor: null, drag: null, logLoss: false,
      point: (step) => this.point(step),
      zoom: (range) => this.zoom(range),
    };
    this.fetchDetail = fetchDetail;
    this.charts = CHARTS.map((spec) => new Chart(spec, this.view));
    // The first three stand together; the others fill rows, however many a run has.
    const [first, others] = [element("div", { class: "first" }), element("div", { class: "others" })];
    this.charts.forEach((chart, at) => (at < 3 ? first : others).append(chart.figure));
    grid.append(first, others);
    this.waiting = false;
    darkness.addEventListener("change", () => this.redraw());
  }

  show(columns) {
    this.columns = columns;
    if (!this.view.range) this.detail = null;
    this.give();
  }

  give() {
    const columns = this.detail ?? this.columns;
    for (const chart of this.charts) chart.show(columns);
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      for (const chart of this.charts) chart.draw();
    });
  }

  point(step) {
    this.view.cursor = step;
    this.redraw();
  }

  /** Shows a range of steps, or all of them; where rows stand for several steps, its own rows are fetched. */
  async zoom(range) {
    if (!this.columns?.rows) return;
    this.view.range = range;
    this.view.cursor = null;
    this.detail = null;
    this.give();
    this.onZoom?.(range);
    if (!range || this.columns.isWhole) return;
    const detail = await this.fetchDetail(range);
    if (detail?.rows && this.view.range === range) {
      this.detail = detail;
      this.give();
    }
  }
}
