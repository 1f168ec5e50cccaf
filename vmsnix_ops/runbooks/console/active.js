// HTML whose elements with `data-do` send this text to Python when they are clicked. Links with `data-file`
// open a file below JupyterLab's folder in a new tab of the browser: a notebook in JupyterLab, any other file
// as it is. A change of `notice` shows it as a notice of the browser, if the user has allowed notices.

function addressOf(file) {
  const config = JSON.parse(document.getElementById("jupyter-config-data")?.textContent ?? "{}");
  return `${config.baseUrl ?? "/"}${file.endsWith(".ipynb") ? "lab/tree" : "files"}/${file}`;
}

function render({ model, el }) {
  const actives = () => [...el.querySelectorAll("[data-do]")];
  const draw = () => {
    const focused = el.contains(document.activeElement) ? document.activeElement.dataset.do : undefined;
    const before = el.querySelector(".vmsnix-scroll");
    const [left, top] = [before?.scrollLeft ?? 0, before?.scrollTop ?? 0];
    el.innerHTML = model.get("html"); // made by vmsnix_ops.templates, which escapes every value
    for (const link of el.querySelectorAll("a[data-file]")) {
      Object.assign(link, { href: addressOf(link.dataset.file), target: "_blank", rel: "noopener" });
    }
    el.querySelector(".vmsnix-scroll")?.scrollTo(left, top);
    if (focused !== undefined) actives().find((one) => one.dataset.do === focused && one.matches("button"))?.focus();
    drawNotices();
  };
  // The button that asks for the permission to show notices: a browser grants it only after a click.
  const drawNotices = () => {
    const button = el.querySelector("[data-notices]");
    if (!button) return;
    const allowed = "Notification" in window ? Notification.permission : "denied";
    const texts = { granted: "The browser notifies you when it ends.", denied: "Notices are blocked by the browser." };
    if (allowed in texts) button.replaceWith(texts[allowed]);
  };
  el.addEventListener("click", ({ target }) => {
    if (target.closest("[data-notices]")) Notification.requestPermission().then(drawNotices);
    const found = target.closest("[data-do]");
    const selecting = !target.closest("button") && String(window.getSelection()) !== "";
    if (found && !selecting && !target.closest("a")) model.send(found.dataset.do);
  });
  model.on("change:html", draw);
  model.on("change:notice", () => {
    if ("Notification" in window && Notification.permission === "granted" && model.get("notice")) {
      new Notification("vmsnix", { body: model.get("notice") });
    }
  });
  draw();
}

export default { render };
