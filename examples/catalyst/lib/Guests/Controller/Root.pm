package Guests::Controller::Root;

use strict;
use warnings;
use parent 'Catalyst::Controller';
use Digest::MD5;

__PACKAGE__->config(namespace => '');

sub auto : Private {
    my ($self, $c) = @_;
    $c->res->content_type('text/plain');
    return 1;
}

sub index : Path Args(0) {
    my ($self, $c) = @_;
    my $name = $c->session->{name};
    return $c->res->body("Nobody is logged in\n") if !defined $name;
    my $visits = ++$c->session->{visits};
    $c->res->body("Hello $name, visit $visits, process $$\n");
}

sub login : Local Args(0) POST {
    my ($self, $c) = @_;
    $c->change_session_id if defined $c->session->{name};
    $c->session->{name}   = $c->req->body_params->{name};
    $c->session->{visits} = 0;
    $c->res->body("Welcome, process $$\n");
}

sub upload : Local Args(0) POST {
    my ($self, $c) = @_;
    my $file = $c->req->upload('file');
    if (!$file) {
        $c->res->status(400);
        return $c->res->body("no file\n");
    }
    my $sum = Digest::MD5->new->addfile($file->fh)->hexdigest;
    $c->res->body(join(' ', $file->filename, $file->size, $sum) . "\n");
}

# Answers when there is news, or after a minute. Meanwhile the worker is busy:
# workers.max must be above the number of those who wait.
sub wait : Local Args(0) {
    my ($self, $c) = @_;
    my $until = time + 60;
    select undef, undef, undef, 0.1 while !-e news() && time < $until;
    open my $in, '<', news() or return $c->res->body("no news\n");
    local $/;
    $c->res->body(join '', $c->session->{name} // 'You', ", process $$: ", readline $in);
}

sub news_told : Path('news') Args(0) POST {
    my ($self, $c) = @_;
    open my $out, '>', news() . '.new' or die "news: $!";
    print {$out} $c->req->body_params->{text}, "\n";
    close $out or die "news: $!";
    rename news() . '.new', news() or die "news: $!";
    $c->res->body("told\n");
}

sub stream : Local Args(0) {
    my ($self, $c) = @_;
    $c->res->write("line $_\n") for 1 .. 3;
}

sub default : Path {
    my ($self, $c) = @_;
    $c->res->status(404);
    $c->res->body("there is no such page\n");
}

sub news { "$Guests::VAR/news" }

1;
