// Everything that is not a chart: present numbers, alerts, members, decisions, generations.

function byId(id) {
  return document.getElementById(id);
}

/** Changes an element's text only where it is another one, so that a reader's selection stays. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const TONES = { training: "good", paused: "wait", failing: "bad" };
const PHASE_NAMES = {
  "waiting-for-members": "waiting for members", "waiting-for-return": "waiting for ranks to return",
  "waiting-for-comm-id": "connecting", "waiting-for-ready": "getting ready",
};

function showHead(state) {
  const { run, phase, status, end, last } = state;
  document.title = `${run.name} · ${phase}`;
  write(byId("name"), run.name);
  const pill = byId("phase");
  const tone = end ? (end.outcome === "failed" ? "bad" : "done") : (TONES[phase] ?? "wait");
  pill.dataset.tone = tone;
  write(pill, end ? end.outcome : (PHASE_NAMES[phase] ?? phase));
  write(byId("reason"), end ? end.reason : (status?.reason ?? ""));
  write(byId("run-id"), `${run.id}${status ? ` · term ${status.term} · generation ${status.generation} · ${status.backend}` : ""}`);
  const total = run.total_steps || last?.step || 0;
  const step = last?.step ?? 0;
  const bar = byId("progress");
  bar.setAttribute("aria-valuemax", total);
  bar.setAttribute("aria-valuenow", step);
  byId("done").style.width = total ? `${(100 * step) / total}%` : "0";
}

/** Label, value and a small line below it. */
function figuresOf(state, columns) {
  const { run, last, validation, status, end } = state;
  const total = run.total_steps;
  const ms = columns?.recent("step_ms", 50) ?? last?.step_ms;
  const left = total && last && !end ? ((total - last.step) * ms) / 1000 : null;
  const figures = [
    ["Step", last ? whole(last.step) : NONE, total ? `of ${whole(total)}` : ""],
    ["Loss", short(last?.loss), "nats a token"],
    ["Validation", short(validation?.[1]), validation ? `after step ${whole(validation[0])}` : "not yet"],
    ["Learning rate", rate(last?.lr), isOther(last) ? `effective ${rate(last.effective_lr)}` : "as planned"],
    ["Batch", whole(last?.batch), isNumber(last?.noise_scale) ? `noise scale ${short(last.noise_scale)}` : "samples"],
    ["Throughput", short(columns?.recent("tokens_per_second", 20) ?? last?.tokens_per_second), "tokens a second"],
    ["Step time", last ? duration(ms / 1000) : NONE, "mean of 50"],
    ["Tokens", short(last?.tokens), `${short(last?.samples)} samples`],
    ["Ranks", whole(status?.ranks ?? last?.ranks), `${run.lanes} lanes`],
    ["Time left", left === null ? NONE : duration(left), end ? "the run is over" : "at this speed"],
  ];
  if (status?.skipped_steps) figures.push(["Skipped", whole(status.skipped_steps), status.last_skip ?? ""]);
  if (status?.rewinds) figures.push(["Rewinds", whole(status.rewinds), status.last_rewind ?? ""]);
  return figures;
}

function isOther(last) {
  return last && isNumber(last.effective_lr) && Math.abs(last.effective_lr - last.lr) > Math.abs(last.lr) * 1e-4;
}

function showFigures(state, columns) {
  const list = byId("figures");
  const figures = figuresOf(state, columns);
  while (list.children.length > figures.length) list.lastChild.remove();
  figures.forEach(([label, value, below], at) => {
    let box = list.children[at];
    if (!box) {
      box = element("div", {}, element("dt"), element("dd", {}, element("span"), element("small")));
      list.append(box);
    }
    write(box.querySelector("dt"), label);
    write(box.querySelector("span"), value);
    write(box.querySelector("small"), below);
    box.querySelector("small").title = below;
  });
}

function showAlerts(alerts) {
  const box = byId("alerts");
  const row = (alert) =>
    element(
      "div", { class: alert.until === null ? "alert" : "alert over" },
      element("b", { text: alert.kind.replace("-", " ") }),
      element("span", { text: alert.sentence }),
      element("time", { text: moment(alert.since) + (alert.until === null ? "" : ` – ${moment(alert.until)}`) }),
    );
  const raised = alerts.filter((alert) => alert.until === null);
  const over = alerts.filter((alert) => alert.until !== null);
  const signature = JSON.stringify(alerts);
  if (box.dataset.signature === signature) return;
  box.dataset.signature = signature;
  box.hidden = alerts.length === 0;
  const wasOpen = box.querySelector("details")?.open ?? false;
  box.replaceChildren(...raised.map(row));
  if (over.length) {
    const past = element("details", {}, element("summary", { text: `${over.length} earlier alert${over.length === 1 ? "" : "s"}` }), ...over.map(row));
    past.open = wasOpen;
    box.append(past);
  }
}

const MEMBER_COLUMNS = ["Rank", "Member", "Step", "Now", "Lanes", "Host", "Time of the last minute, by phase"];

function showMembers(members, isOver) {
  const box = byId("members");
  const signature = JSON.stringify(members) + isOver;
  if (box.dataset.signature === signature) return;
  box.dataset.signature = signature;
  if (!members.length) {
    box.replaceChildren(element("p", { class: "dim", text: isOver ? "The run is over; its members have gone." : "Nobody is there yet." }));
    return;
  }
  const number = new Set(["Step"]);
  const head = element("tr", {}, ...MEMBER_COLUMNS.map((name) => element("th", { scope: "col", class: number.has(name) ? "number" : "", text: name })));
  const rows = members.map((member) => {
    const bar = element("div", { class: "shares" });
    const words = member.shares.map(([phase, share, waiting]) => {
      const parts = [[share - waiting, ""], [waiting, "waits"]].filter(([part]) => part > 0.001);
      for (const [part, kind] of parts) {
        const piece = element("span", { class: kind });
        piece.style.width = `${part * 100}%`;
        piece.style.background = phaseColour(phase);
        bar.append(piece);
      }
      return `${phase} ${Math.round(share * 100)} %${waiting > 0.01 ? ` (${Math.round(waiting * 100)} % waiting)` : ""}`;
    });
    bar.title = words.join("\n");
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", words.join(", ") || "not seen yet");
    return element(
      "tr", {},
      element("td", { text: member.rank ?? NONE }),
      element("td", { text: member.member }),
      element("td", { class: "number", text: whole(member.step) }),
      element("td", { class: member.waits ? "now dim" : "now", text: member.waits ? `waits in ${member.phase}` : member.phase }),
      element("td", { text: member.lanes ? `${member.lanes[0]}–${member.lanes[1] - 1}` : NONE }),
      element("td", { class: "dim", text: `${member.host} (${member.pid})` }),
      element("td", { class: "share" }, bar),
    );
  });
  box.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

const MOST_SHOWN = 500;

/** Newest first. */
function showDecisions(decisions) {
  const rows = decisions.slice(-MOST_SHOWN).reverse().map(({ at, reason }) =>
    element("li", {}, element("time", { text: moment(at), datetime: new Date(at * 1000).toISOString() }), element("span", { text: reason })),
  );
  byId("decisions").replaceChildren(...(rows.length ? rows : [element("li", { class: "none", text: "Nothing was decided yet but to train." })]));
}

function showGenerations(generations) {
  const rows = generations.slice(-MOST_SHOWN).reverse().map((generation) => {
    const ranks = generation.members.map((member) => `rank ${member.rank} ${member.member}, lanes ${member.lanes[0]}–${member.lanes[1] - 1}`);
    const word = `${generation.number} from step ${whole(generation.from_step)}: ${generation.members.length} rank${generation.members.length === 1 ? "" : "s"}`;
    const row = element("li", {}, element("span", { class: "at", text: generation.at ? moment(generation.at) : `term ${generation.term}` }), element("span", { text: word }));
    row.title = ranks.join("\n");
    return row;
  });
  byId("generations").replaceChildren(...(rows.length ? rows : [element("li", { class: "none", text: "None was formed yet." })]));
}
