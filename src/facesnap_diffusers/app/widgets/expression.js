// A slider for each ARKit expression, by part of the face. The value holds the strengths that are not 0, by name.
const root = element.querySelector(".fs-expression");
const inputs = {};

function read() {
  const value = {};
  for (const [name, input] of Object.entries(inputs)) if (Number(input.value) > 0) value[name] = Number(input.value);
  return value;
}

root.replaceChildren(...Object.entries(options.groups).map(([title, names]) => {
  const details = document.createElement("details"), summary = document.createElement("summary");
  summary.textContent = title;
  details.append(summary, ...names.map((name) => {
    const label = document.createElement("label"), text = document.createElement("span"), input = document.createElement("input");
    text.textContent = name;
    Object.assign(input, { type: "range", min: 0, max: 1, step: 0.05, value: 0, name });
    input.oninput = () => { props.value = read(); trigger("moved"); };
    inputs[name] = input;
    label.append(text, input);
    return label;
  }));
  return details;
}));

function receive() {
  for (const [name, input] of Object.entries(inputs)) input.value = props.value?.[name] ?? 0;
}
watch("value", receive);
receive();
