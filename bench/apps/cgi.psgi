# A page as CGI.pm makes it, of a parameter.
use strict;
use warnings;
use CGI ();

sub {
    my $env  = shift;
    my $q    = CGI->new($env->{QUERY_STRING});
    my $name = $q->param('name') // 'nobody';
    my @rows = map { $q->Tr($q->td($_), $q->td("row $_")) } 1 .. 10;
    my $page = $q->start_html('A page') . $q->h1('Hello ' . $q->escapeHTML($name)) . $q->table(@rows) . $q->end_html;
    return [200, ['Content-Type' => 'text/html', 'Content-Length' => length $page], [$page]];
};
