"""How a film's report looks: one style sheet, for light and dark, for wide screens and narrow."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #16181d; --faint: #646b78; --line: #e3e6eb;
  --row: #f0f2f5; --accent: #3b5bdb;
  --kind-0: #5b7cfa; --kind-1: #12a594; --kind-2: #e5484d; --kind-3: #f0a020;
  --on-bar: #ffffff; --shadow: 0 1px 2px rgb(20 24 33 / 6%), 0 6px 20px rgb(20 24 33 / 5%);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1115; --card: #181b21; --ink: #eceef2; --faint: #98a0ae; --line: #2a2f38;
    --row: #20242b; --accent: #8da2fb;
    --kind-0: #6f8bff; --kind-1: #1fb5a3; --kind-2: #f2656a; --kind-3: #f5b041;
    --on-bar: #0f1115; --shadow: none;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px; }
h1 {
  font-size: clamp(1.5rem, 4vw, 2.4rem); line-height: 1.18; letter-spacing: -0.02em;
  margin: 6px 0 14px; font-weight: 680; text-wrap: balance; overflow-wrap: anywhere;
}
h2 { font-size: 1.05rem; letter-spacing: -0.01em; margin: 0 0 4px; font-weight: 650; }
h3 { font-size: .82rem; margin: 18px 0 8px; font-weight: 600; color: var(--faint); }
p { margin: 0; }
a { color: var(--accent); }
.eyebrow {
  color: var(--faint); font-size: .75rem; font-weight: 600; letter-spacing: .08em;
  text-transform: uppercase;
}
.note { color: var(--faint); font-size: .86rem; max-width: 72ch; }
.facts { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; padding: 0; list-style: none; }
.facts li {
  border: 1px solid var(--line); border-radius: 999px; padding: 3px 12px; font-size: .84rem;
  background: var(--card); font-variant-numeric: tabular-nums;
}
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  box-shadow: var(--shadow); padding: 22px 24px; margin-top: 20px; min-width: 0;
}
.film { padding: 0; overflow: hidden; background: #000; text-align: center; }
.film video { display: block; width: 100%; max-height: min(72vh, 540px); object-fit: contain; }
.film p { padding: 8px 16px; max-width: none; background: var(--card); }
.script { list-style: none; margin: 12px 0 0; padding: 0; max-height: 22em; overflow-y: auto; }
.script li {
  display: grid; grid-template-columns: 5.5em 1fr; gap: 12px; padding: 7px 0;
  border-top: 1px solid var(--line); overflow-wrap: anywhere;
}
.script li:first-child { border-top: 0; }
time { color: var(--faint); font-variant-numeric: tabular-nums; font-size: .9rem; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--faint); font-size: .9rem; }
.whole { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22em; overflow-y: auto; }
.stills {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(96px, 28vw), 1fr));
  gap: 12px;
}
figure { margin: 0; }
.stills a { display: block; border-radius: 8px; overflow: hidden; background: var(--row); }
.stills img { display: block; width: 100%; height: auto; }
figcaption {
  color: var(--faint); font-size: .76rem; margin-top: 4px; font-variant-numeric: tabular-nums;
}
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 14px 0 6px; font-size: .86rem; }
.legend span { display: inline-flex; align-items: center; gap: 7px; }
.legend i { width: 12px; height: 12px; border-radius: 3px; }
.legend b { font-weight: 500; color: var(--faint); font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; }
svg.gantt { min-width: 680px; }
svg text { font-size: 11px; fill: var(--faint); font-variant-numeric: tabular-nums; }
svg .name { font-size: 12px; fill: var(--ink); }
svg .tick, svg .number { text-anchor: middle; }
svg .value, svg .last { text-anchor: end; }
svg .number { fill: var(--on-bar); font-weight: 600; pointer-events: none; }
svg .row { fill: var(--row); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .start { stroke: var(--faint); stroke-width: 1.2; stroke-dasharray: 4 4; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg .dot { fill: var(--accent); stroke: var(--card); stroke-width: 1.5; }
svg .point:hover rect { fill: var(--accent); fill-opacity: .12; }
svg .bar { stroke: var(--card); stroke-width: .8; }
svg g:hover > .bar { filter: brightness(1.15); }
.kind-0 { fill: var(--kind-0); background: var(--kind-0); }
.kind-1 { fill: var(--kind-1); background: var(--kind-1); }
.kind-2 { fill: var(--kind-2); background: var(--kind-2); }
.kind-3 { fill: var(--kind-3); background: var(--kind-3); }
svg.lines polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg.lines line { stroke-width: 1.2; opacity: .55; }
.line-0 { --own: #3b76f0; } .line-1 { --own: #e5484d; } .line-2 { --own: #12a594; }
.line-3 { --own: #f0a020; } .line-4 { --own: #a15bd8; } .line-5 { --own: #7a8699; }
.line-6 { --own: #d6409f; } .line-7 { --own: #6b9a1f; }
svg [class^="line-"] > polyline, svg [class^="line-"] line { stroke: var(--own); }
svg [class^="line-"] circle { fill: var(--own); }
.legend i[class^="line-"] { background: var(--own); }
.grid-table { table-layout: auto; margin-top: 10px; }
.grid-table th { width: auto; }
.grid-table td, .grid-table th { padding-right: 14px; overflow-wrap: normal; }
.grid-table thead th { color: var(--ink); font-weight: 600; border-top: 0; }
.verdict { font-weight: 650; white-space: nowrap; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(270px, 100%), 1fr));
  gap: 22px; margin-top: 16px;
}
.charts h3 { color: var(--ink); margin: 0; font-size: .92rem; }
.charts .figure { font-size: 1.5rem; font-weight: 650; letter-spacing: -0.02em; }
.charts .figure small { font-size: .82rem; font-weight: 500; color: var(--faint);
  letter-spacing: 0; margin-left: 6px; }
.tables { columns: 2; column-gap: 36px; }
.tables > div { break-inside: avoid; }
table { width: 100%; border-collapse: collapse; font-size: .86rem; table-layout: fixed; }
th, td {
  text-align: left; vertical-align: top; padding: 5px 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums;
}
tr:first-child > * { border-top: 0; }
th { font-weight: 500; color: var(--faint); width: 40%; padding-right: 12px; }
code, pre, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre {
  background: var(--row); border-radius: 10px; padding: 14px 16px; margin: 12px 0 0;
  font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; user-select: all;
}
footer { color: var(--faint); font-size: .8rem; margin-top: 24px; text-align: center; }
@media (max-width: 720px) {
  main { padding: 22px 12px 40px; }
  section { padding: 18px 16px; border-radius: 12px; }
  .tables { columns: 1; }
}
@media print {
  body { background: #fff; }
  section { box-shadow: none; break-inside: avoid; }
}
"""
