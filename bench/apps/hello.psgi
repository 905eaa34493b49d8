# The least that a site can be.
sub {
    my $env = shift;
    return [200, ['Content-Type' => 'text/plain', 'Content-Length' => 12], ["Hello world\n"]];
};
