// Boxes over the landmark preview that say where each face goes: dragged, resized at their corner, or moved by keys.
// The value is a list of [left, top, right, bottom], shares of the image.
const stage = element.querySelector(".fs-boxes");
const LEAST = 0.08;
let boxes = [];

const rounded = (box) => box.map((share) => Math.round(share * 1000) / 1000);

function place(node, [left, top, right, bottom]) {
  Object.assign(node.style, {
    left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%`,
  });
}

function moved([left, top, right, bottom], x, y) {
  x = Math.min(Math.max(x, -left), 1 - right);
  y = Math.min(Math.max(y, -top), 1 - bottom);
  return [left + x, top + y, right + x, bottom + y];
}

const resized = ([left, top, right, bottom], x, y) => [
  left, top, Math.min(1, Math.max(left + LEAST, right + x)), Math.min(1, Math.max(top + LEAST, bottom + y)),
];

function set(i, box) {
  boxes = boxes.map((old, j) => (j === i ? rounded(box) : old));
  place(stage.children[i], boxes[i]);
  props.value = boxes;
  trigger("moved");
}

function follow(node, i, change) {
  node.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    event.stopPropagation();
    stage.children[i].focus();
    node.setPointerCapture(event.pointerId);
    const start = boxes[i], { width, height } = stage.getBoundingClientRect();
    const move = (now) => set(i, change(start, (now.clientX - event.clientX) / width, (now.clientY - event.clientY) / height));
    node.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) {
      node.addEventListener(end, () => node.removeEventListener("pointermove", move), { once: true });
    }
  });
}

const KEYS = {
  ArrowLeft: (box) => moved(box, -0.01, 0), ArrowRight: (box) => moved(box, 0.01, 0),
  ArrowUp: (box) => moved(box, 0, -0.01), ArrowDown: (box) => moved(box, 0, 0.01),
  "+": (box) => resized(box, 0.01, 0.01), "-": (box) => resized(box, -0.01, -0.01),
};

function draw() {
  stage.replaceChildren(...boxes.map((box, i) => {
    const node = document.createElement("div"), corner = document.createElement("span");
    node.className = "fs-box";
    node.tabIndex = 0;
    node.setAttribute("role", "application");
    node.setAttribute("aria-label", `Face ${i + 1}. Arrow keys move it, plus and minus change its size`);
    node.dataset.number = i + 1;
    node.append(corner);
    place(node, box);
    follow(node, i, moved);
    follow(corner, i, resized);
    node.addEventListener("keydown", (event) => {
      if (KEYS[event.key]) { event.preventDefault(); set(i, KEYS[event.key](boxes[i])); }
    });
    return node;
  }));
}

function receive() {
  const received = props.value || [];
  if (JSON.stringify(received) === JSON.stringify(boxes)) return;
  boxes = received;
  draw();
}
watch("value", receive);
receive();
