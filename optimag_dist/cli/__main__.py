from optimag_dist.cli import main

main()
