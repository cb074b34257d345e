"use strict";

const PAGE = 48; // cards at a time: the rest is data
const TINY = 40; // up to this many pixels a picture is magnified pixel for pixel on its card, too
const FULL = 256; // in the detail view pictures are magnified by whole numbers to at least this width
const MAPS = { change: "change", mask: "mask", pre_explanation: "before refinement" };
const NUMBERS = {
  p_before: "p before", p_attack: "p attack", p_after: "p after", l1: "L1, mean", l2: "L2", linf: "L∞",
  changed_area: "repainted", iterations: "iterations", unet_forwards: "UNet forward", unet_backwards: "UNet backward",
  seconds: "seconds", label: "label", seed: "seed",
};
const ON_CARD = ["l1", "changed_area", "iterations"];

const runs = JSON.parse(document.getElementById("data").textContent);
const images = runs[0].images.map((_, index) => runs.map((run) => run.images[index])); // each with what every run knows
const controls = document.getElementById("controls");
const list = document.getElementById("cards");
const pager = document.getElementById("pager");
const detail = document.getElementById("detail");
let shown = images; // those that pass the filter, in order
let page = 0;
let position = 0; // of the image in the detail view, among those shown

const copyOf = (name) => document.getElementById(name).content.firstElementChild.cloneNode(true);
const clamp = (value, most) => Math.min(Math.max(value, 0), most);
const pages = () => Math.max(1, Math.ceil(shown.length / PAGE));

function format(name, value) {
  if (value === null) return "—";
  if (name === "changed_area") return `${(100 * value).toFixed(1)} %`;
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(3)));
}

// --- one image

function source(run, image, kind, full) {
  const thumbnail = run.thumbnails && !full && !(kind in MAPS);
  return `${run.base}/images/${thumbnail ? "thumbnail/" : ""}${kind}/${image.id}.${thumbnail ? "jpg" : "png"}`;
}

function fillPicture(element, run, image, kind, full) {
  const name = MAPS[kind] ?? kind;
  [element.width, element.height] = run.size;
  element.loading = "lazy";
  element.alt = `${image.id}, ${name}`;
  element.src = source(run, image, kind, full);
  return element;
}

function pictures(run, image, full) {
  const has = (kind) => image.kinds.includes(kind);
  if (!has("original")) return [];
  if (!has("counterfactual")) {
    const alone = fillPicture(document.createElement("img"), run, image, "original", full);
    alone.className = "alone";
    return [alone];
  }
  const slider = copyOf("slider");
  fillPicture(slider.querySelector(".before"), run, image, "original", full);
  fillPicture(slider.querySelector(".after"), run, image, "counterfactual", full);
  slider.querySelector("input").ariaLabel = `${image.id}: share of the original shown, percent`;
  const maps = Object.keys(MAPS).filter((kind) => has(kind) && (full || kind !== "pre_explanation"));
  return [slider, ...maps.map((kind) => {
    const figure = copyOf("map");
    fillPicture(figure.querySelector("img"), run, image, kind, full);
    figure.querySelector("figcaption").textContent = MAPS[kind];
    return figure;
  })];
}

function mark(probability) {
  const point = document.createElement("i");
  point.style.setProperty("--p", probability);
  return point;
}

function view(run, image, full) {
  const element = copyOf("view");
  const set = (selector, text) => { element.querySelector(selector).textContent = text; };
  const name = element.querySelector(".run");
  name.textContent = run.name;
  name.hidden = runs.length === 1;
  set(".direction", image.direction);
  set(".outcome", image.outcome.replaceAll("_", " "));
  element.querySelector(".outcome").classList.add(image.outcome);
  if (run.size) {
    const [width, height] = run.size;
    element.classList.toggle("tiny", Math.max(width, height) <= TINY);
    element.style.setProperty("--aspect", height / width);
    element.style.setProperty("--full", `${width * Math.ceil(FULL / width)}px`);
  }
  element.querySelector(".pictures").append(...pictures(run, image, full));
  element.querySelector(".odds").hidden = image.p_after === null;
  if (image.p_after !== null) {
    set(".target", `p(${image.target})`);
    set(".change-of-p", `${image.p_before?.toFixed(2) ?? "?"} → ${image.p_after.toFixed(2)}`);
    element.querySelector(".track").append(mark(image.p_before ?? 0), mark(image.p_after));
  }
  const why = element.querySelector(".why");
  why.textContent = image.status;
  why.hidden = image.status === image.outcome;
  const names = full ? Object.keys(NUMBERS) : image.l1 === null ? [] : ON_CARD;
  element.querySelector(".numbers").append(...names.map((key) => {
    const pair = document.createElement("div");
    pair.append(document.createElement("dt"), document.createElement("dd"));
    pair.firstChild.textContent = NUMBERS[key];
    pair.lastChild.textContent = format(key, image[key]);
    return pair;
  }));
  return element;
}

const views = (image, full) => runs.map((run, index) => view(run, image[index], full));

// --- the gallery

function card(image) {
  const element = copyOf("card");
  element.dataset.id = image[0].id;
  element.querySelector(".open").textContent = image[0].id;
  element.querySelector(".views").append(...views(image, false));
  return element;
}

function draw() {
  page = clamp(page, pages() - 1);
  list.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(card));
  document.getElementById("none").hidden = shown.length > 0;
  pager.hidden = pages() === 1;
  pager.querySelector("[name=page]").value = page + 1;
  pager.querySelector("[name=page]").max = pages();
  pager.querySelector(".pages").textContent = pages();
  pager.querySelector("[name=previous]").disabled = page === 0;
  pager.querySelector("[name=next]").disabled = page === pages() - 1;
}

function arrange() {
  const { run = 0, direction, outcome, name, sort, order } = Object.fromEntries(new FormData(controls));
  const differs = (image) => new Set(image.map(({ outcome }) => outcome)).size > 1;
  shown = images.filter((image) => (!direction || image[run].direction === direction)
    && (!outcome || (outcome === "differs" ? differs(image) : image[run].outcome === outcome))
    && image[run].id.toLowerCase().includes(name.trim().toLowerCase()));
  shown.sort((first, second) => {
    const [a, b] = [first[run][sort], second[run][sort]];
    if (a === null || b === null) return (a === null) - (b === null); // what has no number comes last either way
    return Number(order) * ((a > b) - (a < b));
  });
  controls.querySelector("output").value = `${shown.length} of ${images.length} images`;
  page = 0;
  draw();
}

function turn(to) {
  page = to;
  draw();
  controls.scrollIntoView({ block: "start" });
}

function focusCard(index) { // among those shown, on whatever page it is
  if (index < 0 || index >= shown.length) return;
  if (Math.floor(index / PAGE) !== page) turn(Math.floor(index / PAGE));
  list.children[index % PAGE].querySelector(".open").focus();
}

function columns() {
  const tops = [...list.children].map((element) => element.offsetTop);
  return tops.filter((top) => top === tops[0]).length;
}

// --- the detail view

function show(index) {
  if (index < 0 || index >= shown.length) return;
  position = index;
  detail.querySelector("h2").textContent = shown[index][0].id;
  detail.querySelector(".position").textContent = `${index + 1} of ${shown.length}`;
  detail.querySelector("[name=previous]").disabled = index === 0;
  detail.querySelector("[name=next]").disabled = index === shown.length - 1;
  detail.querySelector(".views").replaceChildren(...views(shown[index], true));
  if (!detail.open) detail.showModal();
}

// --- what happens

const STEPS = { ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -columns(), ArrowDown: columns };
const placeOf = (element) => page * PAGE + [...list.children].indexOf(element.closest("li"));

document.addEventListener("input", ({ target }) => {
  if (target.type === "range") target.parentElement.style.setProperty("--cut", `${target.value}%`);
});
controls.addEventListener("change", ({ target }) => target.type === "search" || arrange());
controls.querySelector("[type=search]").addEventListener("input", arrange);
controls.addEventListener("submit", (event) => event.preventDefault());
list.addEventListener("click", ({ target }) => target.matches(".open") && show(placeOf(target)));
list.addEventListener("keydown", (event) => {
  if (!event.target.matches(".open") || !(event.key in STEPS)) return;
  event.preventDefault();
  focusCard(placeOf(event.target) + STEPS[event.key]());
});
pager.addEventListener("click", ({ target }) => {
  if (target.name === "previous") turn(page - 1);
  if (target.name === "next") turn(page + 1);
});
pager.addEventListener("change", ({ target }) => turn(Math.floor(Number(target.value) || 1) - 1));
detail.addEventListener("click", ({ target }) => {
  if (target.name === "previous") show(position - 1);
  if (target.name === "next") show(position + 1);
  if (target.name === "close" || target === detail) detail.close();
});
detail.addEventListener("keydown", (event) => {
  if (event.target.type === "range" || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  event.preventDefault();
  show(position + STEPS[event.key]());
});
detail.addEventListener("close", () => {
  detail.querySelector(".views").replaceChildren();
  focusCard(position);
});
document.querySelector("#reproduce button")?.addEventListener("click", async ({ target }) => {
  const command = target.previousElementSibling;
  try {
    await navigator.clipboard.writeText(command.textContent);
    target.textContent = "Copied";
  } catch { // not every browser lets a page from the disk do so
    getSelection().selectAllChildren(command);
  }
});

arrange(); // a browser may restore the controls of an earlier visit
