# What the figures share. `data` and `out` come from scripts/figures.
set encoding utf8
set output out
set border 3 linecolor rgb "#9ca3af"
set tics nomirror textcolor rgb "#374151"
set grid back linecolor rgb "#d1d5db" linewidth 0.7
set key textcolor rgb "#374151"
set title textcolor rgb "#1f2937"
set xlabel textcolor rgb "#374151"
set ylabel textcolor rgb "#374151"
ours = "#2563eb"
raw = "#9ca3af"
