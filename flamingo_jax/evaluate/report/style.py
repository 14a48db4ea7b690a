"""The report's style sheet."""

OWN_COLOURS = ("#0550ae", "#bc4c00", "#1a7f37", "#8250df")

STYLE = """
:root { --ink: #1f2328; --muted: #6e7781; --line: #d8dee4; --soft: #f6f8fa; --own-0: #0550ae;
  --own-1: #bc4c00; --own-2: #1a7f37; --own-3: #8250df; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 32px 24px 80px; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 44px 0 8px; padding-top:
  12px;
  border-top: 1px solid var(--line); } h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 6px 0; } .muted, .note { color: var(--muted); } .note { font-size: 13px; max-width:
  70em; }
nav a { margin-right: 14px; } a { color: var(--own-0); text-decoration: none; }
table { border-collapse: collapse; font-size: 13.5px; margin: 10px 0; font-variant-numeric:
  tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--line); } td { border-bottom: 1px solid
  #eef1f4; }
th:first-child, td:first-child { text-align: left; } td.text { text-align: left; white-space:
  normal; }
table.heat th + th { padding-right: 0; text-align: center; }
td.task { padding-top: 12px; color: var(--muted); }
table.heat td.cell { padding: 4px 10px; text-align: center; border: 2px solid #fff; min-width:
  54px; }
.wide { overflow-x: auto; }
svg { width: 100%; max-width: 760px; height: auto; display: block; margin: 8px 0;
  font: 11.5px system-ui, "Liberation Sans", sans-serif; fill: var(--ink); }
.grid { stroke: #e7ebef; } .tick, .axis { fill: var(--muted); }
.line { stroke-width: 1.2; } .line text { stroke: none; } .line circle { stroke: #fff; }
.published { stroke: #afb8c1; fill: #818b98; } .published circle { fill: #afb8c1; }
.flamingo { stroke: #d9b98a; fill: #9a6f2c; } .flamingo circle { fill: #d9b98a; }
.own-0, .own-1, .own-2, .own-3 { stroke-width: 2.4; font-weight: 600; }
.own-0 { stroke: var(--own-0); fill: var(--own-0); } .own-1 { stroke: var(--own-1); fill:
  var(--own-1); }
.own-2 { stroke: var(--own-2); fill: var(--own-2); } .own-3 { stroke: var(--own-3); fill:
  var(--own-3); }
.leader { stroke-width: .8; opacity: .6; fill: none; }
.bar { fill: #54aeff; } .interval { stroke: var(--ink); stroke-width: 1.4; } .muted { fill:
  var(--muted); }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 0 28px; }
@media (max-width: 860px) { .columns { grid-template-columns: 1fr; } }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 10px 0; }
.card header { display: flex; justify-content: space-between; font-size: 13px; color:
  var(--muted); }
.card header b { color: var(--ink); } .score { font-weight: 600; color: var(--ink); }
.best .card { border-left: 4px solid #2da44e; } .worst .card { border-left: 4px solid #cf222e; }
.steps { display: flex; flex-wrap: wrap; gap: 8px; margin: 8px 0; }
figure { margin: 0; width: 112px; font-size: 11.5px; line-height: 1.35; } figure img { width:
  112px;
  height: 84px; object-fit: cover; border-radius: 4px; display: block; }
figure:last-child img { outline: 3px solid #0969da; outline-offset: -1px; }
figcaption { margin-top: 3px; overflow-wrap: anywhere; }
.none { width: 112px; height: 84px; border-radius: 4px; background: var(--soft); color:
  var(--muted);
  display: grid; place-items: center; text-align: center; border: 1px dashed var(--line);
  padding: 4px;
  overflow: hidden; font-size: 11px; overflow-wrap: anywhere; }
.missing { border-color: #cf222e; color: #cf222e; }
.answer { font-weight: 600; } .answer .muted { font-weight: 400; font-size: 12.5px; }
.references { margin: 0; padding-left: 18px; font-size: 13px; color: var(--muted); }
code { font-size: 12.5px; overflow-wrap: anywhere; }
"""
