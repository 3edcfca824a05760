"use strict";
// The grid of pictures: it is filled as the reader scrolls, and drawn anew where a control changes.
const camlakeGallery = (() => {
  const { setup } = camlakeSource;
  const PART = 48;
  const grid = document.getElementById("grid");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const control = (name) => document.getElementById(name);
  const view = { rule: setup.rule, look: "plain", threshold: null, only: null, line: 2 };
  const shown = new Map(); // card → entry
  const visible = new Set(); // cards in or near the viewport
  let entries = [];
  let total = 0;
  let turn = 0; // of the search; answers to an earlier one are dropped
  let loading = false;

  const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
  const number = (value) => value.toLocaleString("en");

  function node(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function query() {
    return {
      text: control("text").value.trim(),
      label: control("label").value,
      least: Number(control("least").value),
      most: 1,
      order: control("order").value,
    };
  }

  async function show(card) {
    const entry = shown.get(card);
    const frame = card.querySelector(".frame");
    const image = frame.querySelector("img");
    if (!image.dataset.asked) {
      image.dataset.asked = "yes";
      const url = await camlakeSource.picture(entry, false);
      if (url) image.src = url;
      else lost(frame);
    }
    const size = [frame.clientWidth, frame.clientHeight];
    if (size[0]) camlakeOverlay.draw(frame.querySelector("canvas"), entry, size, view);
  }

  const lost = (frame) => frame.classList.add("lost");

  const watch = new IntersectionObserver(
    (changes) => {
      for (const change of changes) {
        if (change.isIntersecting) {
          visible.add(change.target);
          show(change.target);
        } else visible.delete(change.target);
      }
    },
    { rootMargin: "400px" },
  );

  function card(entry) {
    const made = node("button", "picture");
    made.type = "button";
    const ratio = Math.min(Math.max(entry.width / entry.height, 0.6), 2.2);
    made.style.setProperty("--ratio", ratio);
    const frame = node("div", "frame");
    const image = node("img");
    image.alt = `${entry.label}: ${entry.name}`;
    image.decoding = "async";
    image.loading = "lazy";
    image.addEventListener("error", () => lost(frame));
    frame.append(image, node("canvas"));
    const caption = node("div", "caption");
    caption.append(node("b", "", entry.label), node("span", "number", percent(entry.prob)));
    const below = node("div", "below");
    const facts = entry.boxes.length ? `score ${entry.score.toFixed(2)}` : "no box";
    below.append(node("span", "name", entry.name));
    below.append(node("span", "number", entry.iou === null ? facts : `IoU ${entry.iou.toFixed(2)}`));
    made.append(frame, caption, below);
    made.title = entry.uri;
    made.addEventListener("click", () => camlakeDetail.open(entry));
    shown.set(made, entry);
    watch.observe(made);
    return made;
  }

  async function load() {
    if (loading || (entries.length >= total && turn)) return;
    loading = true;
    const mine = turn;
    try {
      const found = await camlakeSource.find(query(), entries.length, PART);
      if (mine !== turn) return;
      total = found.total;
      entries.push(...found.images);
      grid.append(...found.images.map(card));
      count.textContent = total === setup.total ? number(total) : `${number(total)} of ${number(setup.total)}`;
      grid.classList.toggle("none", total === 0);
      more.hidden = entries.length >= total;
      document.documentElement.dataset.ready = "yes";
    } catch (error) {
      if (mine === turn) count.textContent = `not found: ${error.message}`;
      return;
    } finally {
      if (mine === turn) loading = false;
    }
    if (!more.hidden && more.getBoundingClientRect().top < 2 * window.innerHeight) load();
  }

  function search() {
    turn += 1;
    loading = false;
    [entries, total] = [[], Infinity];
    watch.disconnect();
    shown.clear();
    visible.clear();
    grid.replaceChildren();
    load();
  }

  function redraw() {
    for (const one of visible) show(one);
    camlakeDetail.redraw();
  }

  function setThreshold(value) {
    view.threshold = value;
    control("threshold").value = value ?? setup.rule.threshold ?? 0.5;
    const text = value === null ? "as stored" : value.toFixed(2);
    for (const out of document.querySelectorAll(".threshold-value")) out.textContent = text;
    control("stored").disabled = value === null;
    redraw();
  }

  function setLook(look) {
    view.look = look;
    for (const one of document.querySelectorAll("[name=look]")) one.checked = one.value === look;
    redraw();
  }

  // Moves between cards with the arrow keys; up and down go to the card above or below.
  function move(event) {
    const cards = [...shown.keys()];
    const at = cards.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (at < 0) return;
    let next = step ? cards[at + step] : null;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const here = cards[at].getBoundingClientRect();
      const middle = here.left + here.width / 2;
      const down = event.key === "ArrowDown";
      const below = (one) => one.offsetTop - cards[at].offsetTop;
      const rows = cards.filter((one) => (down ? below(one) > 0 : below(one) < 0));
      const top = rows.length ? rows[down ? 0 : rows.length - 1].offsetTop : -1;
      next = rows
        .filter((one) => one.offsetTop === top)
        .find((one) => one.getBoundingClientRect().right >= middle) ?? rows[down ? 0 : rows.length - 1];
    }
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }

  function start() {
    let wait;
    const later = () => {
      clearTimeout(wait);
      wait = setTimeout(search, setup.live ? 250 : 60);
    };
    for (const name of ["text", "least"]) control(name).addEventListener("input", later);
    for (const name of ["label", "order"]) control(name).addEventListener("change", search);
    control("least").addEventListener("input", () => {
      control("least-value").textContent = Number(control("least").value).toFixed(2);
    });
    control("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
    control("stored").addEventListener("click", () => setThreshold(null));
    for (const one of document.querySelectorAll("[name=look]")) {
      one.addEventListener("change", () => setLook(one.value));
    }
    for (const link of document.querySelectorAll("[data-label]")) {
      link.addEventListener("click", () => {
        const { label } = link.dataset;
        const known = [...control("label").options].some((one) => one.value === label);
        if (!known) control("label").append(new Option(label, label));
        control("label").value = label;
        search();
      });
    }
    grid.addEventListener("keydown", move);
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !event.target.closest("input, select, dialog")) {
        event.preventDefault();
        control("text").focus();
      }
    });
    new IntersectionObserver((changes) => changes.some((one) => one.isIntersecting) && load(), {
      rootMargin: "1200px",
    }).observe(more);
    window.addEventListener("resize", () => requestAnimationFrame(redraw));
    setThreshold(null);
    search();
  }

  // Returns the entry `step` places after one, loading further ones where needed; null at either end.
  async function neighbour(entry, step) {
    if (!entries.includes(entry)) return null;
    const at = entries.indexOf(entry) + step;
    if (at >= entries.length && entries.length < total) await load();
    return entries[at] ?? null;
  }

  return { start, view, node, percent, setThreshold, setLook, neighbour };
})();
