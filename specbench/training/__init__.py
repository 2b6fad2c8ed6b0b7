"""Making the models a pair needs: corpus, tokenizer, training loop, distillation and the card that reports them."""
