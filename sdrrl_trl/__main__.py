from sdrrl_trl.cli import main


# guarded: worker processes of lm-eval import the main module again
if __name__ == "__main__":
    main()
