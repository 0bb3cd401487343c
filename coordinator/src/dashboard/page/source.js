// Where the data comes from: a coordinator, or the file that this page is.

/** Asks for a token; somebody must sign in first. */
class Unknown extends Error {}

class Live {
  isLive = true;

  async ask(path) {
    const answer = await fetch(path, { headers: { accept: "application/json" } });
    if (answer.status === 401) throw new Unknown();
    if (!answer.ok) throw new Error((await sentenceOf(answer)) || `${path} answered ${answer.status}`);
    return answer.json();
  }

  state() {
    return this.ask("/api/state");
  }

  history(range) {
    return this.ask(range ? `/api/history?from=${range[0]}&to=${range[1]}` : "/api/history");
  }

  /** Follows the run. The browser connects again by itself and says where it stood; where it gives up, we do. */
  follow(place, on) {
    const events = new EventSource(`/api/events?since=${place}`);
    let last = place;
    const take = (event) => {
      last = event.lastEventId || last;
      on.news(JSON.parse(event.data));
    };
    events.addEventListener("open", () => on.link(true));
    events.addEventListener("news", take);
    events.addEventListener("end", (event) => {
      events.close();
      take(event);
      on.over();
    });
    events.addEventListener("error", () => {
      on.link(false);
      if (events.readyState !== EventSource.CLOSED) return;
      setTimeout(() => this.follow(last, on), 3000);
    });
  }

  async post(path, body) {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-lockstep": "1" },
      body: JSON.stringify(body),
    });
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(said.error || (answer.status === 403 ? "this token may look, and not command" : `the answer was ${answer.status}`));
    return said;
  }
}

async function sentenceOf(answer) {
  const said = await answer.json().catch(() => ({}));
  return said.sentence ?? said.error ?? "";
}

class Embedded {
  isLive = false;

  constructor(text) {
    this.data = JSON.parse(text);
  }

  async state() {
    return this.data.state;
  }

  /** All there is; a range of it is cut out by the charts. */
  async history(range) {
    return range ? null : this.data.history;
  }
}
