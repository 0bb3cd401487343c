// The history in columns, as it comes from the coordinator: whole, and what is newer row by row.

class Columns {
  constructor(view) {
    Object.assign(this, view);
    this.hours = [];
    this.measure();
  }

  get rows() {
    return this.step.length;
  }

  /** Whether every step has a row of its own. */
  get isWhole() {
    return this.steps === this.rows;
  }

  /** Adds the rows that are newer than all that are here. */
  append(view) {
    const before = this.rows;
    const begin = view.step.findIndex((step) => step > this.last);
    const from = begin < 0 ? view.step.length : begin;
    for (const name of ["step", "samples", "tokens", "generation", "ranks"]) this[name].push(...view[name].slice(from));
    const grow = (here, there) => {
      for (const kind of ["mean", "least", "most"]) {
        here[kind]?.push(...(there?.[kind] ?? there?.mean ?? view.step.map(() => null)).slice(from));
      }
    };
    const absent = () => ({ mean: Array(before).fill(null) });
    for (const name of Object.keys(view.columns)) this.columns[name] ??= absent();
    for (const [name, series] of Object.entries(this.columns)) grow(series, view.columns[name]);
    const phases = new Map(view.phases);
    for (const name of phases.keys()) if (!this.phases.some(([known]) => known === name)) this.phases.push([name, absent()]);
    for (const [name, series] of this.phases) grow(series, phases.get(name));
    const last = this.validations.at(-1)?.[0] ?? 0;
    this.validations.push(...view.validations.filter(([step]) => step > last));
    this.steps += this.rows - before;
    this.last = this.step.at(-1) ?? 0;
    this.measure();
  }

  /** The hours of training after each row. */
  measure() {
    let hours = this.hours.at(-1) ?? 0;
    for (let row = this.hours.length; row < this.rows; row += 1) {
      const steps = this.step[row] - (row > 0 ? this.step[row - 1] : this.first - 1);
      hours += ((this.columns.step_ms?.mean[row] ?? 0) * steps) / 3.6e6;
      this.hours.push(hours);
    }
  }

  /** The first row at or after a step. */
  rowOf(step) {
    let [low, high] = [0, this.rows];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.step[middle] < step) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Where a step is on an axis, between the rows around it. */
  at(step, axis) {
    const values = this[axis];
    const row = Math.min(this.rowOf(step), this.rows - 1);
    if (row <= 0 || this.step[row] === step) return values[Math.max(row, 0)];
    const share = (step - this.step[row - 1]) / (this.step[row] - this.step[row - 1]);
    return values[row - 1] + Math.min(share, 1) * (values[row] - values[row - 1]);
  }

  /** The mean of the newest numbers of a column. */
  recent(name, count) {
    const values = (this.columns[name]?.mean ?? []).slice(-count).filter(isNumber);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }
}
