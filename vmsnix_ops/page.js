"use strict";
// The tables of a page: search, filter, sort, group, copy. Values become text, never HTML. Only the rows in view
// are in the document, so that a table can have tens of thousands. It has two sources: the JSON beside it, and
// the tables of a notebook's outputs.
{
  const ROW = 48; // height of a row in pixels, as in page.css
  const AROUND = 12; // rows above and below those in view, for the Tab key
  const FLEXIBLE = 9; // least width of a column without a width, in rem
  const SENTENCE = 60; // characters of a cell of an output that needs a wide column
  const SENTENCES = [20, 12, 8, 6]; // least widths of such a column, in rem: the first with which its table fits
  const FEW = 50; // rows up to which all groups are open
  const KINDS = 12; // words of a column of an output up to which its rows can be filtered
  const {compare: collate} = new Intl.Collator("en", {numeric: true});
  const isEmpty = (value) => value === null || value === "";
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : collate(a, b));
  const numbers = [0, 1, 2].map((digits) => new Intl.NumberFormat("en", {minimumFractionDigits: digits, maximumFractionDigits: 2}));
  const toText = (value, digits = 0) => (isEmpty(value) ? "" : typeof value === "number" ? numbers[digits].format(value) : value);
  const counted = (count) => `${toText(count)} ${count === 1 ? "row" : "rows"}`;
  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const button = (label, act, properties) => make("button", {type: "button", onclick: act, ...properties}, label);

  async function copy(from, text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // a page of a plain HTTP server has no clipboard
      const area = make("textarea", {value: text});
      from.after(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      from.focus();
    }
    from.dataset.copied = "copied";
    setTimeout(() => delete from.dataset.copied, 1500);
  }
  const copyButton = (text, what) => {
    const found = button("", () => copy(found, text), {className: "copy", title: "Copy", ariaLabel: `Copy ${what}`});
    return found;
  };

  function showDetails(columns, row) {
    const facts = columns.filter((column) => !isEmpty(column.value(row))).map((column) => {
      const text = toText(column.value(row));
      return make("div", {}, make("dt", {}, column.label), make("dd", {}, text, copyButton(text, column.label)));
    });
    const close = button("Close", () => dialog.close(), {className: "close"});
    const dialog = make("dialog", {ariaLabel: "Details", onclose: () => dialog.remove()}, make("dl", {}, ...facts), close);
    document.body.append(dialog);
    dialog.showModal();
  }

  // One table: `draw` shows the rows or groups that `items` has, each a number or an object.
  function control({columns, count, sort, descending, group, heads, toolbar, draw, search}) {
    const all = Array.from({length: count}, (_, row) => row);
    const state = {words: [], chosen: new Map(), sort, descending, group, open: new Set()};
    let texts = null;
    const status = make("span", {role: "status", className: "soft"});

    const rank = (column) => {
      column.ranks ??= (() => {
        const words = [...new Set(all.map(column.value))].filter((value) => !isEmpty(value));
        const place = column.order ? (value) => column.order.indexOf(value) : null;
        words.sort(place ? (a, b) => place(a) - place(b) : order);
        const ranks = new Map(words.map((word, number) => [word, number]));
        return all.map((row) => ranks.get(column.value(row)) ?? Infinity);
      })();
      return column.ranks;
    };
    const sorted = (view) => {
      if (!state.sort) return view;
      const ranks = rank(state.sort), sign = state.descending ? -1 : 1;
      return view.sort((a, b) => {
        const [one, other] = [ranks[a], ranks[b]]; // empty cells are last in both directions
        return one === other ? 0 : one === Infinity ? 1 : other === Infinity ? -1 : sign * (one - other);
      });
    };
    const update = () => {
      if (state.words.length) {
        texts ??= all.map((row) => columns.map((column) => toText(column.value(row))).join("\n").toLowerCase());
      }
      const chosen = [...state.chosen];
      const view = sorted(all.filter((row) =>
        chosen.every(([column, word]) => toText(column.value(row)) === word)
        && state.words.every((word) => texts[row].includes(word))));
      status.textContent = view.length === count ? counted(count) : `${toText(view.length)} of ${counted(count)}`;
      heads.forEach(({head, column}) => {
        head.ariaSort = column !== state.sort ? "none" : state.descending ? "descending" : "ascending";
      });
      let items = view;
      if (state.group) {
        const groups = new Map();
        for (const row of view) {
          const word = toText(state.group.value(row));
          if (!groups.has(word)) groups.set(word, {word, rows: [], column: state.group});
          groups.get(word).rows.push(row);
        }
        const all_open = view.length <= FEW || state.words.length > 0;
        items = [...groups.values()].flatMap((one) => {
          one.isOpen = all_open !== state.open.has(one.word);
          return one.isOpen ? [one, ...one.rows] : [one];
        });
      }
      state.view = view;
      draw(items, state.group);
    };
    for (const {head, column} of heads) {
      head.scope = "col";
      head.replaceChildren(button(head.textContent, () => {
        state.descending = state.sort === column && !state.descending;
        state.sort = column;
        update();
      }, {className: "sort"}));
    }
    const choose = (label, options, act) => toolbar.append(make("label", {}, label, " ",
      make("select", {onchange: (event) => act(event.target.value)}, ...options.map((one) => new Option(...one)))));
    if (search) {
      let timer = 0;
      const input = make("input", {type: "search", oninput: () => {
        clearTimeout(timer);
        timer = setTimeout(() => {
          state.words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
          state.open.clear();
          update();
        }, 120);
      }});
      toolbar.append(make("label", {}, "search ", input));
    }
    for (const column of columns.filter((one) => one.filter)) {
      const counts = new Map();
      for (const row of all) counts.set(toText(column.value(row)), (counts.get(toText(column.value(row))) ?? 0) + 1);
      const words = [...counts.keys()].sort(column.order ? (a, b) => column.order.indexOf(a) - column.order.indexOf(b) : order);
      if (words.length < 2) continue;
      const options = words.map((word, number) => [`${word || "none"} (${toText(counts.get(word))})`, number]);
      choose(column.label, [["all", ""], ...options], (number) => {
        if (number === "") state.chosen.delete(column);
        else state.chosen.set(column, words[number]);
        update();
      });
    }
    const groupable = columns.filter((one) => one.group);
    if (groupable.length) {
      const options = groupable.map((one, number) => [one.label, number, one === group, one === group]);
      choose("group by", [["nothing", ""], ...options], (number) => {
        state.group = groupable[number];
        state.open.clear();
        update();
      });
    }
    if (search) {
      // A text that begins like a formula would be run by a spreadsheet.
      const tsv = (text) => text.replace(/\s+/g, " ").replace(/^(?=[\s'"]*[=+\-@\uff1d\uff0b\uff0d\uff20])/, "'");
      const line = (cells) => cells.map((value) => (typeof value === "number" ? String(value) : tsv(toText(value)))).join("\t");
      const whole = button("copy rows", () => copy(whole, [columns.map((column) => column.label),
        ...state.view.map((row) => columns.map((column) => column.value(row)))].map(line).join("\n")));
      toolbar.append(whole, status);
    }
    return {update, toggle: (one) => {
      if (!state.open.delete(one.word)) state.open.add(one.word);
      update();
    }};
  }

  // A table with the rows of a JSON block.
  function fromData(source) {
    const {columns, count, sort, group, sum} = JSON.parse(source.textContent), byName = {};
    for (const column of columns) {
      const {words, values} = column;
      column.value = words ? (row) => words[values[row]] : (row) => values[row];
      byName[column.name] = column;
    }
    const shown = columns.filter((column) => !column.hidden);
    const heads = shown.map((column) => ({column, head: make("th", {className: column.kind}, column.label)}));
    const spaces = [0, 1].map(() => make("tr", {className: "space", ariaHidden: "true"}, make("td")));
    const body = make("tbody", {}, ...spaces);
    const table = make("table", {ariaLabel: source.dataset.title}, make("thead", {}, make("tr", {}, ...heads.map(({head}) => head))), body);
    const scroller = make("div", {className: "rows", tabIndex: 0, role: "region", ariaLabel: source.dataset.title}, table);
    const toolbar = make("div", {className: "tools"});
    heads.forEach(({head, column}) => { if (column.width) head.style.width = `${column.width}rem`; });
    let items = [], visible = shown;
    const drawn = new Map();

    const toneOf = ({tones, value}, row) => {
      const tone = tones && (tones[value(row)] ?? tones[""]);
      return tone && `tone-${tone}`;
    };
    const cell = (column, row) => {
      const value = column.value(row), text = toText(value, column.digits), found = make("td", {className: column.kind});
      const link = column.link && byName[column.link].value(row);
      const main = column.kind === "id"
        ? button(text || "details", () => showDetails(columns, row), {title: "Show details"})
        : link ? make("a", {href: link, title: text}, text) : make("span", {title: text}, text);
      main.className = `main ${toneOf(column, row) ?? ""}`;
      found.append(main);
      if (text && (column.kind === "id" || column.kind === "command")) found.append(copyButton(text, text));
      if (column.below) {
        const other = byName[column.below], below = toText(other.value(row));
        found.append(make("span", {className: `below ${toneOf(other, row) ?? "soft"}`, title: below}, below));
      }
      return found;
    };
    const groupRow = (one, place) => {
      const {word, rows, column} = one, tone = column.tones?.[word];
      const total = sum ? rows.reduce((before, row) => before + (byName[sum].value(row) ?? 0), 0) : 0;
      const toggle = button(word || "none", () => {
        act.toggle(one);
        drawn.get(place)?.querySelector("button").focus();
      }, {className: `group ${tone ? `tone-${tone}` : ""}`, ariaExpanded: String(one.isOpen)});
      const sums = `${counted(rows.length)}${total ? `, ${toText(total, byName[sum].digits)} ${byName[sum].label}` : ""}`;
      const first = column.lead ? [cell(byName[column.lead], rows[0]).firstChild] : [];
      const note = make("span", {className: "soft"}, column.notes?.[word] ?? "");
      return make("tr", {className: "group"}, make("td", {colSpan: visible.length}, make("div", {}, toggle, ...first, note, make("span", {className: "count"}, sums))));
    };
    const render = () => {
      const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - AROUND);
      const last = Math.min(items.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW) + AROUND);
      for (const [place, row] of drawn) if (place < first || place >= last) { row.remove(); drawn.delete(place); }
      for (let place = last - 1, next = spaces[1]; place >= first; place--) { // rows that stay keep the focus
        if (!drawn.has(place)) {
          const item = items[place];
          const row = typeof item === "number" ? make("tr", {}, ...visible.map((column) => cell(column, item))) : groupRow(item, place);
          row.ariaRowIndex = String(place + 2);
          drawn.set(place, row);
          next.before(row);
        }
        next = drawn.get(place);
      }
      spaces.forEach((space, number) => { space.firstChild.style.height = `${ROW * (number ? items.length - last : first)}px`; });
    };
    const act = control({columns, count, heads, toolbar, search: true, sort: byName[sort.replace("-", "")],
      descending: sort.startsWith("-"), group: byName[group], draw: (found, by) => {
        items = found;
        visible = shown.filter((column) => column !== by || column.below); // each group names its value
        heads.forEach(({head, column}) => { head.hidden = !visible.includes(column); });
        spaces.forEach((space) => { space.firstChild.colSpan = visible.length; });
        table.style.minWidth = `${visible.reduce((before, column) => before + (column.width || FLEXIBLE), 0)}rem`;
        table.ariaRowCount = String(found.length + 1);
        drawn.forEach((row) => row.remove());
        drawn.clear();
        render();
      }});
    scroller.addEventListener("scroll", () => requestAnimationFrame(render), {passive: true});
    addEventListener("resize", render);
    source.replaceWith(toolbar, scroller);
    act.update();
  }

  // A table of a notebook's output, whose rows are moved.
  function fromOutput(table) {
    const head = table.tHead?.rows.length === 1 ? [...table.tHead.rows[0].cells] : [];
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
    if (!head.length || rows.length < 2 || rows.some((row) => row.cells.length !== head.length)) return;
    const read = (text) => (text === "-" ? "" : /^-?[\d,]+(\.\d+)?$/.test(text) ? Number(text.replaceAll(",", "")) : text);
    const values = rows.map((row) => [...row.cells].map((one) => read(one.textContent.trim())));
    const search = rows.length > 8;
    const columns = head.map((one, number) => {
      const words = new Set(values.map((row) => row[number]));
      const few = words.size <= KINDS && 2 * words.size <= rows.length;
      const filter = search && few && ![...words].some((one) => Number.isFinite(one) || one.length > SENTENCE);
      return {label: one.textContent, filter, value: (row) => values[row][number]};
    });
    // Otherwise IDs, which cannot be broken, leave a sentence a word a line.
    const sentences = head.filter((_, number) => values.some((row) => String(row[number]).length > SENTENCE));
    rows.forEach((row) => sentences.forEach((one) => { row.cells[one.cellIndex].style.overflowWrap = "anywhere"; }));
    const fits = (width) => {
      sentences.forEach((one) => { one.style.minWidth = `${width}rem`; });
      return table.offsetWidth <= table.parentElement.clientWidth;
    };
    const fit = () => { if (!SENTENCES.some(fits)) fits(SENTENCES[0]); }; // it scrolls sideways in any case
    fit();
    if (sentences.length) window.addEventListener("resize", fit);
    const toolbar = make("div", {className: "tools"});
    table.before(toolbar);
    control({columns, count: rows.length, toolbar, search, heads: head.map((one, number) => ({head: one, column: columns[number]})),
      draw: (items) => table.tBodies[0].replaceChildren(...items.map((item) => rows[item]))}).update();
  }

  document.querySelectorAll("script[type='application/json']").forEach(fromData);
  document.querySelectorAll(".output table").forEach(fromOutput);
}
