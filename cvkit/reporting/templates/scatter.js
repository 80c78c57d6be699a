// Shows the image of the point that is pointed at, tapped, or reached by arrow keys.
"use strict";
for (const figure of document.querySelectorAll(".scatter")) {
  const find = name => figure.querySelector(`.${name}`);
  const plane = find("plane"), ring = find("ring"), card = find("card");
  const {places, names, classes, ["true"]: labels, predicted, size, step, columns, images} =
    JSON.parse(find("facts").textContent);
  const canvas = card.querySelector("canvas"), context = canvas.getContext("2d");
  const scale = Math.max(1, Math.floor(96 / Math.max(...size)));
  const sheet = new Image();
  let chosen = -1;

  // Puts an element beside a point, towards the middle of the picture.
  function place(element, [x, y], gap) {
    const [left, top] = [x, y].map(part => `calc(${100 * part}% + ${gap}px)`);
    const [right, bottom] = [x, y].map(part => `calc(${100 * (1 - part)}% + ${gap}px)`);
    Object.assign(element.style, x < 0.5 ? {left, right: "auto"} : {left: "auto", right},
                  y < 0.5 ? {top, bottom: "auto"} : {top: "auto", bottom});
  }

  function show(number) {
    chosen = number;
    ring.hidden = card.hidden = number < 0;
    if (number < 0) return;
    const [x, y] = places[number], [width, height] = size;
    Object.assign(ring.style, {left: `${100 * x}%`, top: `${100 * y}%`});
    Object.assign(canvas, {width: scale * width, height: scale * height});
    context.imageSmoothingEnabled = false;
    context.drawImage(sheet, number % columns * step[0], Math.floor(number / columns) * step[1],
                      width, height, 0, 0, canvas.width, canvas.height);
    const [is, said] = [classes[labels[number]], classes[predicted[number]]];
    find("true").textContent = is;
    find("said").textContent = is === said ? "predicted rightly" : `predicted: ${said}`;
    find("name").textContent = names[number];
    place(card, places[number], 12);
  }

  // Returns the point with the lowest cost, or -1 if none has any; costs are of steps in pixels.
  function cheapest([x, y], cost) {
    const {width, height} = plane.getBoundingClientRect();
    let best = -1, lowest = Infinity;
    places.forEach(([across, down], number) => {
      const value = cost((across - x) * width, (down - y) * height);
      if (value < lowest && number !== chosen) [best, lowest] = [number, value];
    });
    return best;
  }

  function point(event) {
    const {left, top, width, height} = plane.getBoundingClientRect();
    chosen = -1;
    show(cheapest([(event.clientX - left) / width, (event.clientY - top) / height],
                  (across, down) => Math.hypot(across, down) < 24 ? Math.hypot(across, down) : NaN));
  }

  const ways = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]};
  function press(event) {
    const way = ways[event.key];
    if (event.key === "Escape") show(-1);
    if (!way || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    // In that direction, what lies aside counts twice.
    const next = chosen < 0 ? cheapest([0.5, 0.5], Math.hypot) : cheapest(
      places[chosen], (across, down) => {
        const along = across * way[0] + down * way[1];
        const aside = Math.abs(across * way[1]) + Math.abs(down * way[0]);
        return along > 0 || (along === 0 && aside === 0) ? along + 2 * aside : NaN;
      });
    if (next >= 0) show(next);
  }

  sheet.addEventListener("load", () => {
    // Without a script it is a picture and no more.
    plane.tabIndex = 0;
    plane.setAttribute("role", "application");
    plane.setAttribute("aria-label", "Images as points, of which arrow keys choose one");
    plane.addEventListener("pointermove", event => event.pointerType === "mouse" && point(event));
    plane.addEventListener("pointerleave", event => event.pointerType === "mouse" && show(-1));
    plane.addEventListener("click", point);
    plane.addEventListener("keydown", press);
    plane.addEventListener("blur", () => show(-1));
    find("hint").hidden = false;
  });
  sheet.src = images;
}
