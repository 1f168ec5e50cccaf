// An extension of JupyterLab for the page of `vmsnix console`. On every other page it does nothing.
//
// JupyterLab loads it as a prebuilt extension: a container of module federation, with the plugin as its only
// module. It needs no build, because it uses only the application object.
(() => {
  const PAGE = /\/doc\/workspaces\/vmsnix-console\/tree\/console\.ipynb$/;
  const TITLE = "vmsnix console";
  const STYLE = `
    .vmsnix-opening { position: fixed; inset: 0; z-index: 10000; display: grid; place-content: center;
      gap: 8px; padding: 16px; background: #fff; color: #222; font: 15px/1.5 sans-serif; text-align: center; }
    .vmsnix-opening a { color: #0b5cad; }
    @media (prefers-color-scheme: dark) {
      .vmsnix-opening { background: #111; color: #eee; }
      .vmsnix-opening a { color: #8ab4f8; }
    }
    .vmsnix-page-only .jp-Notebook-cell:not(:has(.vmsnix-console)),
    .vmsnix-page-only .jp-Cell-inputWrapper, .vmsnix-page-only .jp-OutputPrompt,
    .vmsnix-page-only .jp-OutputArea-promptOverlay, .vmsnix-page-only .jp-CellFooter,
    .vmsnix-page-only .jp-Notebook-footer, .vmsnix-page-only .jp-CellHeader { display: none !important; }
    .vmsnix-page-only .jp-Notebook, .vmsnix-page-only .jp-WindowedPanel-inner, .vmsnix-page-only .jp-Cell,
    .vmsnix-page-only .jp-WindowedPanel-viewport { padding: 0 !important; margin: 0 !important; }
    .vmsnix-page-only .jp-Collapser { display: none; }`;

  // Say that the console is loading, before JupyterLab itself has loaded.
  const waiting = document.createElement("div");
  const say = (...content) => waiting.replaceChildren(...content);

  // Start the kernel now, while JupyterLab loads. JupyterLab uses the session of a notebook that has one.
  async function startKernel(base) {
    const token = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "";
    await fetch(`${base}api/sessions`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-XSRFToken": token },
      body: JSON.stringify({
        path: "console.ipynb", name: "console.ipynb", type: "notebook", kernel: { name: "python3" },
      }),
    });
  }

  // Return the first truthy answer of `ask`.
  async function until(ask) {
    for (;;) {
      const found = ask();
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  // Hide every widget of the window except the main area and those around it.
  function hideOthers(widget, kept) {
    for (const child of widget.layout?.widgets ?? []) {
      if (!child.node.contains(kept)) child.hide();
      else if (child.node !== kept) hideOthers(child, kept);
    }
  }

  async function open(app, base) {
    await app.restored;
    const panel = await until(() => app.shell.currentWidget?.context && app.shell.currentWidget);
    await panel.context.ready;
    panel.toolbar.hide();
    panel.addClass("vmsnix-page-only");
    hideOthers(app.shell, document.getElementById("jp-main-dock-panel"));
    const keepTitle = () => document.title === TITLE || (document.title = TITLE);
    new MutationObserver(keepTitle).observe(document.querySelector("title"), { childList: true });
    keepTitle();
    await panel.sessionContext.ready;
    const cells = () => panel.content.widgets.filter((cell) => cell.model.type === "code");
    await app.commands.execute("notebook:run-all-cells");
    // The copy of the notebook is not saved, so closing the page asks nothing.
    panel.context.model.dirty = false;
    panel.context.model.stateChanged.connect((model, change) => {
      if (change.name === "dirty" && change.newValue) model.dirty = false;
    });
    const shown = () => panel.node.querySelector(".vmsnix-console");
    const outputs = () => cells().flatMap((cell) => cell.model.outputs.toJSON());
    const failed = () => outputs().some((output) => output.output_type === "error");
    await until(() => shown() || failed());
    if (shown()) {
      panel.node.querySelector(".jp-WindowedPanel-viewport")?.removeAttribute("role"); // not a list of cells
      waiting.remove();
      return;
    }
    panel.removeClass("vmsnix-page-only");
    const link = document.createElement("a");
    link.href = `${base}lab/tree/console.ipynb`;
    link.textContent = "Open the notebook to read the error.";
    say("The console could not start: its notebook failed.", link);
  }

  const plugin = {
    id: "vmsnix-console:open",
    autoStart: true,
    activate: (app) => {
      if (!PAGE.test(location.pathname)) return;
      const base = JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl;
      open(app, base).catch((error) => say(`The console could not start: ${error}`));
    },
  };
  if (PAGE.test(location.pathname)) {
    const style = document.createElement("style");
    style.textContent = STYLE;
    waiting.className = "vmsnix-opening";
    waiting.setAttribute("role", "status");
    say("The console is opening ...");
    document.head.append(style);
    // The shortcuts of JupyterLab could delete the notebook's cell: it listens on the document, after this.
    window.addEventListener("keydown", (event) => event.stopPropagation(), true);
    document.body.append(waiting);
    const base = JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl;
    startKernel(base).catch(() => undefined); // JupyterLab starts the kernel itself
  }
  const containers = (window._JUPYTERLAB ??= {});
  containers["vmsnix-console"] = {
    init: () => undefined,
    get: async () => () => ({ __esModule: true, default: plugin }),
  };
})();
