"use strict";
// One picture, large: its classes, the map and the boxes of the one that is chosen, zoom, neighbours.
const camlakeDetail = (() => {
  const { setup } = camlakeSource;
  const dialog = document.getElementById("detail");
  const stage = dialog.querySelector(".stage");
  const frame = stage.querySelector(".frame");
  const [image, canvas] = [frame.querySelector("img"), frame.querySelector("canvas")];
  const part = (name) => dialog.querySelector(`.${name}`);
  const pointers = new Map();
  let entry = null;
  let only = null; // index of the chosen class; null: all classes with boxes
  let zoom = { scale: 1, x: 0, y: 0 };
  let opener = null;

  async function open(next) {
    if (!dialog.open) {
      opener = document.activeElement;
      dialog.showModal();
      dialog.focus();
    }
    [entry, only, zoom] = [next, null, { scale: 1, x: 0, y: 0 }];
    part("title").textContent = entry.name;
    part("uri").textContent = entry.uri;
    const overlap = entry.iou === null ? "" : ` · IoU ${entry.iou.toFixed(2)}`;
    part("size").textContent = `${entry.width} × ${entry.height}${overlap}`;
    listClasses();
    part("near").replaceChildren();
    image.removeAttribute("src");
    frame.classList.remove("lost");
    redraw();
    const url = await camlakeSource.picture(entry, true);
    if (entry !== next) return;
    if (url) image.src = url;
    else frame.classList.add("lost");
    image.alt = `${entry.label}: ${entry.name}`;
    if (camlakeSource.near) listNear(next);
  }

  function listClasses() {
    const { node, percent } = camlakeGallery;
    const rows = entry.classes.map((one, index) => {
      const row = node("button", "class");
      row.type = "button";
      row.dataset.index = index;
      const boxes = entry.boxes.filter((box) => box.class === index);
      const score = boxes[0]?.score ?? null;
      const facts = [
        one.prob === null ? "" : percent(one.prob),
        score === null ? "" : `score ${score.toFixed(2)}`,
        boxes.length ? "" : "no box",
      ];
      const bar = node("i");
      bar.style.width = `${100 * (one.prob ?? 0)}%`;
      row.append(node("span", "", one.label), node("span", "number", facts.filter(Boolean).join(" · ")), bar);
      row.addEventListener("click", () => choose(only === index ? null : index));
      return row;
    });
    part("classes").replaceChildren(...rows);
  }

  async function listNear(of) {
    const { node } = camlakeGallery;
    const list = part("near");
    list.replaceChildren(node("p", "soft", "looking for similar pictures …"));
    try {
      const { images } = await camlakeSource.near(of);
      if (entry !== of) return;
      const made = await Promise.all(images.map(nearCard));
      list.replaceChildren(node("h3", "", "Similar pictures"), ...made);
    } catch (error) {
      list.replaceChildren(node("p", "soft", `no similar pictures: ${error.message}`));
    }
  }

  async function nearCard(other) {
    const made = camlakeGallery.node("button", "small");
    made.type = "button";
    made.title = `${other.label}: ${other.uri} (${other.similarity.toFixed(3)})`;
    const picture = camlakeGallery.node("img");
    picture.alt = made.title;
    picture.src = await camlakeSource.picture(other, false);
    made.append(picture);
    made.addEventListener("click", () => open(other));
    return made;
  }

  function choose(index) {
    only = index;
    redraw();
  }

  function redraw() {
    if (!entry || !dialog.open) return;
    const { view } = camlakeGallery;
    const room = [stage.clientWidth, stage.clientHeight];
    const scale = Math.min(room[0] / entry.width, room[1] / entry.height);
    const size = [entry.width * scale, entry.height * scale];
    frame.style.width = `${size[0]}px`;
    frame.style.height = `${size[1]}px`;
    frame.style.transform = `translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.scale})`;
    camlakeOverlay.draw(canvas, entry, size, { ...view, only, line: 3 / Math.sqrt(zoom.scale) });
    for (const row of part("classes").children) {
      row.setAttribute("aria-pressed", String(Number(row.dataset.index) === only));
    }
    const boxes = camlakeOverlay.boxesOf(entry, view.rule, view.threshold, only);
    part("coordinates").textContent = boxes
      .map((box) => `${entry.classes[box.index].label}: ${box.xyxy.map((side) => side.toFixed(1)).join(", ")}`)
      .join("\n");
    const cuttable = camlakeOverlay.surfaceOf(entry, only ?? entry.boxes[0]?.class ?? 0, view.rule);
    part("range").disabled = Boolean(setup.rule.refusal) || !cuttable;
    part("range").value = view.threshold ?? setup.rule.threshold ?? 0.5;
  }

  // Zooms so that the point (x, y) of the stage, measured from its centre, stays where it is.
  function zoomTo(scale, x = 0, y = 0) {
    const next = Math.min(Math.max(scale, 1), 16);
    const by = next / zoom.scale;
    zoom = next === 1 ? { scale: 1, x: 0, y: 0 } : { scale: next, x: x - (x - zoom.x) * by, y: y - (y - zoom.y) * by };
    redraw();
  }

  function fromCentre(event) {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }

  async function go(step) {
    const next = await camlakeGallery.neighbour(entry, step);
    if (next) open(next);
  }

  const LOOKS = ["plain", "light", "heat"];
  const KEYS = {
    ArrowRight: () => go(1),
    ArrowLeft: () => go(-1),
    "+": () => zoomTo(zoom.scale * 1.5),
    "=": () => zoomTo(zoom.scale * 1.5),
    "-": () => zoomTo(zoom.scale / 1.5),
    0: () => choose(null),
    m: () => camlakeGallery.setLook(LOOKS[(LOOKS.indexOf(camlakeGallery.view.look) + 1) % LOOKS.length]),
    "[": () => shift(-0.02),
    "]": () => shift(0.02),
    s: () => camlakeGallery.setThreshold(null),
  };

  function shift(by) {
    if (part("range").disabled) return;
    const now = camlakeGallery.view.threshold ?? setup.rule.threshold ?? 0.5;
    camlakeGallery.setThreshold(Math.min(Math.max(now + by, 0.01), 0.99));
  }

  function start() {
    dialog.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target === part("range")) return;
      const digit = Number(event.key);
      if (digit >= 1 && digit <= (entry?.classes.length ?? 0)) choose(digit - 1);
      else if (Object.hasOwn(KEYS, event.key)) KEYS[event.key]();
      else return;
      event.preventDefault();
    });
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomTo(zoom.scale * Math.exp(-event.deltaY / 300), ...fromCentre(event));
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => zoomTo(zoom.scale > 1 ? 1 : 3, ...fromCentre(event)));
    stage.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, fromCentre(event));
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", drag);
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
    image.addEventListener("error", () => image.hasAttribute("src") && frame.classList.add("lost"));
    part("range").addEventListener("input", (event) => camlakeGallery.setThreshold(Number(event.target.value)));
    part("previous").addEventListener("click", () => go(-1));
    part("next").addEventListener("click", () => go(1));
    part("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => {
      entry = null;
      opener?.focus();
    });
  }

  // One pointer moves the picture; two zoom it.
  function drag(event) {
    if (!pointers.has(event.pointerId)) return;
    const before = pointers.get(event.pointerId);
    const now = fromCentre(event);
    pointers.set(event.pointerId, now);
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (point) => Math.max(Math.hypot(point[0] - other[0], point[1] - other[1]), 1);
      zoomTo((zoom.scale * apart(now)) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else if (zoom.scale > 1) {
      zoom = { scale: zoom.scale, x: zoom.x + now[0] - before[0], y: zoom.y + now[1] - before[1] };
      redraw();
    }
  }

  return { open, redraw, start };
})();
