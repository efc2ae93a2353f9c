from terakoya.cli.main import main

main()
