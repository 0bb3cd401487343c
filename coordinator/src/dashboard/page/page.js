// The page: takes what is new and gives it to charts and panels.

/** So many rows are held; then a coarser view is taken. */
const MOST_ROWS = 6000;

class Page {
  constructor(source) {
    this.source = source;
    this.decisions = [];
    this.generations = [];
    this.waiting = [];
    this.charts = new Charts(byId("grid"), async (range) => {
      const view = await source.history(range);
      return view && new Columns(view);
    });
    this.listen();
  }

  async begin() {
    try {
      const [state, view] = await Promise.all([this.source.state(), this.source.history(null)]);
      byId("login").hidden = true;
      this.decisions = state.decisions;
      this.generations = state.generations;
      this.mayOrder = Boolean(state.may_order);
      showDecisions(this.decisions);
      showGenerations(this.generations);
      this.take(view);
      this.show(state);
      performance.mark("shown");
      if (!this.source.isLive || state.end) return this.over();
      const place = [view.epoch, view.last, state.decisions_before + this.decisions.length, this.generations.at(-1)?.number ?? 0].join(".");
      this.source.follow(place, {
        news: (news) => this.news(news),
        link: (isUp) => this.link(isUp),
        over: () => this.over(),
      });
    } catch (error) {
      if (error instanceof Unknown) return this.askForToken();
      this.link(false);
      setTimeout(() => this.begin(), 3000);
    }
  }

  take(view) {
    this.columns = new Columns(view);
    this.charts.show(this.columns);
    document.documentElement.dataset.steps = this.columns.steps;
  }

  async news(news) {
    if (news.decisions.length) {
      this.decisions.push(...news.decisions);
      showDecisions(this.decisions);
    }
    if (news.generations.length) {
      this.generations.push(...news.generations);
      showGenerations(this.generations);
    }
    if (news.history) this.waiting.push(news.history);
    // Before anything is waited for: what comes meanwhile is newer, and stays.
    this.show(news.state);
    if (news.reset || this.columns.rows > MOST_ROWS) await this.takeAll();
    this.append();
    this.show(this.state);
  }

  /** Takes a whole view, one at a time; what comes meanwhile waits. */
  async takeAll() {
    if (this.isTaking) return;
    this.isTaking = true;
    const view = await this.source.history(null).catch(() => null);
    this.isTaking = false;
    if (view) this.take(view);
  }

  /** Adds what waits, as far as it is new. */
  append() {
    if (this.isTaking) return;
    const before = this.columns.rows;
    const known = this.columns.validations.length;
    for (const view of this.waiting.splice(0)) {
      if (view.epoch === this.columns.epoch) this.columns.append(view);
    }
    if (this.columns.rows === before && this.columns.validations.length === known) return;
    this.charts.show(this.columns);
    document.documentElement.dataset.steps = this.columns.steps;
  }

  show(state) {
    this.state = state;
    showHead(state);
    showFigures(state, this.columns);
    showAlerts(state.alerts);
    showMembers(state.members, Boolean(state.end));
    this.showCommands(state.commands);
    byId("set").hidden = !this.source.isLive || !this.mayOrder || Boolean(state.end);
    byId("set-form").querySelector("button").disabled = !state.may_set;
  }

  showCommands(commands) {
    const bar = byId("commands");
    if (!this.source.isLive || !this.mayOrder) commands = [];
    const names = commands.map((command) => command.name).join();
    if (bar.dataset.names !== names) {
      bar.dataset.names = names;
      bar.replaceChildren(
        ...commands.map((command) => {
          const button = element("button", { type: "button", "data-command": command.name, title: command.title, text: command.label });
          button.addEventListener("click", () => this.command(command));
          return button;
        }),
      );
    }
    commands.forEach((command, at) => (bar.children[at].disabled = !command.possible));
  }

  async command(command) {
    if (command.confirm && !(await this.ask(command))) return;
    try {
      this.say((await this.source.post("/api/command", { command: command.name })).sentence);
    } catch (error) {
      this.say(`${command.label}: ${error.message}`);
    }
  }

  /** Says what the change would do, and sends it where that is wanted. Where the answer is lost it is sent again under the same
      key, and is one order. */
  async set(form) {
    const fields = Object.fromEntries(new FormData(form));
    const what = JSON.stringify(fields);
    if (this.order?.what !== what) this.order = { what, key: `page-${unheardOf()}` };
    write(byId("set-said"), "");
    try {
      const would = await this.source.post("/api/set", { ...fields, dry_run: true });
      const change = would.sentence.replace(/^dry run, nothing is changed: from step \d+ on: /, "");
      const confirm = `Takes effect at step ${whole(would.step)}: ${change}.`;
      if (!(await this.ask({ confirm, label: "Set" }))) return;
      this.say((await this.source.post("/api/set", { ...fields, key: this.order.key })).sentence);
      this.order = null;
      form.reset();
    } catch (error) {
      write(byId("set-said"), error.message);
    }
  }

  ask(command) {
    const dialog = byId("ask");
    write(byId("question"), command.confirm);
    write(byId("yes"), command.label);
    dialog.showModal();
    // Only a pressed button answers, and only the newest question: the end of an earlier dialog is told late, and what an earlier
    // one returned stays in the dialog where this one is escaped from.
    return new Promise((resolve) => {
      dialog.querySelector("form").onsubmit = (event) => resolve(event.submitter?.value === "yes");
    });
  }

  say(sentence) {
    const said = byId("said");
    write(said, sentence);
    said.classList.add("shown");
    clearTimeout(this.saying);
    this.saying = setTimeout(() => said.classList.remove("shown"), 6000);
  }

  link(isUp) {
    write(byId("link"), isUp ? "" : "not connected; trying again");
  }

  over() {
    this.link(true);
    if (!this.source.isLive) write(byId("link"), "a saved page");
  }

  askForToken() {
    byId("login").hidden = false;
    write(byId("phase"), "sign in");
    byId("token").focus();
  }

  listen() {
    const { view } = this.charts;
    for (const button of document.querySelectorAll("[data-axis]")) {
      button.addEventListener("click", () => {
        view.axis = button.dataset.axis;
        document.querySelectorAll("[data-axis]").forEach((other) => other.setAttribute("aria-pressed", other === button));
        this.charts.redraw();
      });
    }
    byId("log").addEventListener("click", (event) => {
      view.logLoss = !view.logLoss;
      event.currentTarget.setAttribute("aria-pressed", view.logLoss);
      this.charts.redraw();
    });
    byId("whole").addEventListener("click", () => view.zoom(null));
    this.charts.onZoom = (range) => {
      byId("whole").disabled = !range;
      write(byId("whole"), range ? `Steps ${whole(range[0])}–${whole(range[1])} ✕` : "Whole run");
    };
    byId("set-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.set(event.currentTarget);
    });
    byId("login").addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await this.source.post("/api/login", { token: byId("token").value });
        byId("token").value = "";
        this.begin();
      } catch (error) {
        write(byId("login-said"), error.message);
      }
    });
  }
}

/** A name that nothing else has. */
function unheardOf() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (word) => word.toString(36)).join("-");
}

const embedded = byId("data");
new Page(embedded ? new Embedded(embedded.textContent) : new Live()).begin();
