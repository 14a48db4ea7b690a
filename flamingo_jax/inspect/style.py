"""How the page looks."""

STYLE = """
:root { --line: #dfe3e8; --faint: #6b7683; --accent: #2f6f9f; --good: #dff1e1; --bad: #b3341f; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: #1c2530; font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 28px 0 0; padding-top: 16px; border-top: 2px solid var(--accent); }
h3 { font-size: 16px; margin: 26px 0 8px; }
p { margin: 4px 0 12px; color: var(--faint); }
code { font: 13px ui-monospace, monospace; color: var(--accent); }
.cards { display: flex; flex-wrap: wrap; gap: 10px; }
.cards div {
  background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 8px 16px;
}
.cards b { display: block; font-size: 20px; }
.cards span { color: var(--faint); font-size: 13px; }
.charts { display: flex; flex-wrap: wrap; gap: 14px; margin-top: 18px; }
.charts figure {
  flex: 1 1 290px; max-width: 480px; margin: 0; padding: 10px 14px; background: #fff;
  border: 1px solid var(--line); border-radius: 8px;
}
.charts figcaption { font-size: 13px; font-weight: 600; }
svg { width: 100%; display: block; }
svg rect { fill: var(--accent); }
svg text { font-size: 11px; text-anchor: middle; fill: var(--faint); }
svg path { stroke: var(--line); }
svg line { stroke: var(--bad); stroke-dasharray: 4 3; }
svg .note { fill: var(--bad); }
table {
  border-collapse: collapse; background: #fff; border: 1px solid var(--line); font-size: 14px;
}
th, td { padding: 4px 14px; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; }
.bad { color: var(--bad); }
article {
  background: #fff; border: 1px solid var(--line); border-radius: 8px; margin: 12px 0;
  overflow: hidden;
}
header {
  padding: 6px 14px; border-bottom: 1px solid var(--line); color: var(--faint); font-size: 13px;
}
.row { padding: 12px 14px; line-height: 1.75; white-space: pre-wrap; overflow-wrap: anywhere; }
.row img { height: 112px; vertical-align: middle; border-radius: 6px; margin: 4px 6px 4px 4px; }
.sharp { image-rendering: pixelated; }
.row .sharp { height: 56px; }
.learned { background: var(--good); }
.context { color: var(--faint); }
.special {
  font: 11px ui-monospace, monospace; opacity: 0.75; border-radius: 4px; padding: 1px 3px;
  margin: 0 1px; border: 1px solid var(--line);
}
.cut { color: #b9c0c8; text-decoration: line-through; }
.legend span { padding: 1px 6px; border-radius: 4px; }
.dropped { display: flex; flex-wrap: wrap; gap: 10px; padding: 0 14px 12px; }
.dropped figure { margin: 0; width: 120px; font-size: 12px; line-height: 1.3; color: var(--bad); }
.dropped img, .none {
  height: 72px; border: 2px solid #e3a396; border-radius: 6px; display: block;
  margin-bottom: 3px;
}
.none { width: 72px; text-align: center; line-height: 68px; }
"""
