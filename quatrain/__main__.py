from quatrain.cli import main

main()
