"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = document.getElementById("find");
  const chosen = document.getElementById("metric");
  const rows = document.getElementById("rows");
  const more = document.getElementById("more");
  const PAGE = 50;
  let shown = PAGE;
  let sorted = { key: "change", falling: true };

  // Everything from the data enters the page as text, never as markup.
  const make = (name, classes, ...parts) => {
    const element = document.createElement(name);
    if (classes) element.className = classes;
    element.append(...parts.filter((part) => part !== null));
    return element;
  };
  const number = (value) => value.toFixed(3).replace("-", "−");
  const signed = (value) => (value === 0 ? "0.000" : (value > 0 ? "+" : "") + number(value));
  const kind = (change) => (change > 0 ? "better" : change < 0 ? "worse" : "equal");
  const collator = new Intl.Collator("en", { numeric: true });

  const measured = () => {
    const metric = Number(chosen.value);
    return data.questions.map((question) => {
      const [before, after] = question.values.map((values) => values[metric]);
      const change = Math.round((after - before) * 1e6) / 1e6;
      return { question, id: question.id, before, after, change };
    });
  };

  const matching = (all) => {
    const wanted = document.querySelector("input[name=kind]:checked").value;
    const words = find.value.trim().toLowerCase();
    const { key, falling } = sorted;
    return all
      .filter((row) => wanted === "all" || kind(row.change) === wanted)
      .filter(({ question }) => `${question.id} ${question.text || ""}`.toLowerCase().includes(words))
      .sort((a, b) => {
        const order = key === "id" ? collator.compare(a.id, b.id) : a[key] - b[key];
        return (falling ? -order : order) || collator.compare(a.id, b.id);
      });
  };

  const list = (question, side) => {
    const found = question.lists[side];
    const head = make("h4", "", data.stages[side]);
    if (found === null)
      return make("div", "", head, make("p", "", "This evaluation holds no ranked lists."));
    const [documents, similarities] = found;
    const other = side === 1 && question.lists[0] ? question.lists[0][0] : null;
    const items = documents.map((document_, rank) => {
      const answers = question.relevant.includes(document_);
      const earlier = other ? other.indexOf(document_) : rank;
      const step = earlier < 0 ? "new" : earlier > rank ? `▲ ${earlier - rank}` : earlier < rank ? `▼ ${rank - earlier}` : "";
      const note = make("span", "step", [answers ? "answers" : "", step].filter(Boolean).join(" · "));
      const text = data.texts ? make("span", "text", data.texts[document_]) : null;
      return make(
        "li", answers ? "answers" : "",
        make("span", "", String(rank + 1)), make("span", "id", data.documents[document_]), note,
        make("span", "", similarities[rank] === null ? "" : number(similarities[rank])), text,
      );
    });
    const missed = question.relevant.filter((document_) => !documents.includes(document_));
    const names = missed.map((document_) => data.documents[document_]).join(", ");
    const note = missed.length ? make("p", "id", `Answers not found here: ${names}`) : null;
    return make("div", "", head, make("ol", "", ...items), note);
  };

  const opened = (question) => {
    const cell = make("td", "", make("div", "pair", list(question, 0), list(question, 1)));
    cell.colSpan = 4;
    return make("tr", "opened", cell);
  };

  const line = ({ question, before, after, change }) => {
    const bar = make("i", change < 0 ? "down" : "");
    bar.style.width = `${Math.min(1, Math.abs(change)) * 50}%`;
    const text = question.text ? make("span", "text", question.text) : null;
    const button = make("button", "", make("span", "of", make("span", "id", question.id), text));
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    const row = make(
      "tr", "row",
      make("td", "", button), make("td", "", number(before)), make("td", "", number(after)),
      make("td", "", make("span", "bar", bar), make("span", kind(change), signed(change))),
    );
    row.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) row.nextElementSibling.remove();
      else row.after(opened(question));
    });
    return row;
  };

  const draw = () => {
    const all = measured();
    for (const count of document.querySelectorAll("[data-count]")) {
      const wanted = count.dataset.count;
      const number_ = wanted === "all" ? all.length : all.filter((row) => kind(row.change) === wanted).length;
      count.textContent = number_.toLocaleString("en");
    }
    const found = matching(all);
    rows.replaceChildren(...found.slice(0, shown).map(line));
    more.hidden = found.length <= shown;
    const visible = Math.min(shown, found.length).toLocaleString("en");
    document.getElementById("shown").textContent = found.length
      ? `${visible} of ${found.length.toLocaleString("en")} shown` : "No question matches.";
    for (const head of document.querySelectorAll("th[data-key]")) {
      if (head.dataset.key !== sorted.key) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", sorted.falling ? "descending" : "ascending");
    }
  };

  const anew = () => {
    shown = PAGE;
    draw();
  };
  document.getElementById("controls").addEventListener("input", anew);
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    shown += PAGE;
    draw();
  });
  for (const head of document.querySelectorAll("th[data-key]")) {
    head.firstElementChild.addEventListener("click", () => {
      const key = head.dataset.key;
      sorted = { key, falling: sorted.key === key ? !sorted.falling : key !== "id" };
      anew();
    });
  }
  document.getElementById("unscripted").remove();
  document.getElementById("table").hidden = false;
  draw();
}
