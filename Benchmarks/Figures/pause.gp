# For how long taking a snapshot stops a program. Columns: MiB, and µs for which nobody writes, of the call, and of fork().
set terminal svg size 720,400 font "sans-serif,13" background "#ffffff"
load "style.gp"
set title "A program stops for a snapshot, and for fork()"
set xlabel "region, 4 KiB pages"
set ylabel "ms"
set logscale x 2
set logscale y
set yrange [*:1000]
set xtics ("64 MiB" 64, "128 MiB" 128, "256 MiB" 256, "512 MiB" 512, "1 GiB" 1024, "2 GiB" 2048, "4 GiB" 4096)
set xrange [56:2400]
set key top left Left reverse samplen 2
plot data using 1:($4/1000) with linespoints linewidth 2 pointtype 7 pointsize 0.6 linecolor rgb raw title "fork(): who calls it, and all that write", \
     data using 1:($3/1000) with linespoints linewidth 2 pointtype 7 pointsize 0.6 dashtype 2 linecolor rgb ours title "Region.snapshot(): who calls it", \
     data using 1:($2/1000) with linespoints linewidth 2 pointtype 7 pointsize 0.6 linecolor rgb ours title "Region.snapshot(): all that write"
